// Light, dark, or as the system says. A plain script in the head: the page must not flash.
(() => {
  const KINDS = ["auto", "light", "dark"];
  const kept = () => {
    try {
      return localStorage.getItem("leuko.appearance");
    } catch {
      return null; // storage may be forbidden; then the system decides
    }
  };
  const show = (kind) => {
    if (kind === "auto") delete document.documentElement.dataset.appearance;
    else document.documentElement.dataset.appearance = kind;
    const button = document.getElementById("appearance");
    if (!button) return;
    const names = { auto: "as the system", light: "light", dark: "dark" };
    button.firstElementChild.className = `icon i-${kind}`;
    button.setAttribute("aria-label", `Appearance: ${names[kind]}`);
    button.title = `Appearance: ${names[kind]}`;
  };
  let kind = KINDS.includes(kept()) ? kept() : "auto";
  show(kind);
  document.addEventListener("DOMContentLoaded", () => {
    show(kind);
    document.getElementById("appearance").addEventListener("click", () => {
      kind = KINDS[(KINDS.indexOf(kind) + 1) % KINDS.length];
      try {
        localStorage.setItem("leuko.appearance", kind);
      } catch {
        // it then lasts as long as the page
      }
      show(kind);
    });
  });
})();
