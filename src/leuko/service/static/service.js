// Talks to the service. Knows its addresses and errors; knows nothing of what is shown.

const BASE = "api/v1";
const STARTING = ["starting", "busy"]; // it will answer in a moment
let logIn = null;

/** What the service refused, in its own words. `status` is 0 when it didn't answer at all. */
export class Refusal extends Error {
  constructor(status, body) {
    super(
      body?.error?.message ??
        (status ? `The service answered with ${status}.` : "The service doesn't answer."),
    );
    this.status = status;
    this.code = body?.error?.code ?? "";
    this.body = body ?? {};
  }
}

/** Who asks for the token when the service wants one: an async function. */
export function setLogIn(asks) {
  let asking = null;
  logIn = () => (asking ??= asks().finally(() => (asking = null)));
}

export function address(path) {
  return `${BASE}/${path}`;
}

/** One request; retried after a log-in. Returns the JSON, or null. */
export async function call(method, path, { body, signal } = {}) {
  for (;;) {
    let response;
    try {
      response = await fetch(address(path), {
        method,
        signal,
        credentials: "same-origin",
        headers: body === undefined ? {} : { "Content-Type": "application/json" },
        body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refusal(0);
    }
    const answer = await response.json().catch(() => null);
    if (response.status === 401 && logIn) {
      await logIn();
      continue;
    }
    if (response.status === 503 && STARTING.includes(answer?.error?.code) && !signal?.aborted) {
      await sleep(Math.min(Number(response.headers.get("Retry-After")) || 1, 5));
      continue;
    }
    if (!response.ok) throw new Refusal(response.status, answer);
    return answer;
  }
}

/** Shows the token; the service answers with a cookie. */
export async function begin(token) {
  const response = await fetch("session", {
    method: "POST",
    credentials: "same-origin",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ token }),
  }).catch(() => {
    throw new Refusal(0);
  });
  if (!response.ok) throw new Refusal(response.status, await response.json().catch(() => null));
}

/** Whether this service wants a token at all. */
export async function isGuarded() {
  const response = await fetch("session").catch(() => null);
  return Boolean(response?.ok && (await response.json()).needed);
}

/** Takes the cookie back. */
export async function end() {
  await fetch("session", { method: "DELETE", credentials: "same-origin" });
}

/** Sends one file. `progress` hears a fraction, then null while the machine looks at it. */
export function send(path, file, { name, key, progress, signal }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const form = new FormData();
    form.append("file", file, name);
    request.open("POST", address(path));
    request.setRequestHeader("Idempotency-Key", key);
    request.responseType = "json";
    request.upload.addEventListener("progress", (event) =>
      progress(event.total ? event.loaded / event.total : 0),
    );
    request.upload.addEventListener("load", () => progress(null));
    request.addEventListener("load", () => {
      if (request.status >= 200 && request.status < 300) return resolve(request.response);
      const refusal = new Refusal(request.status, request.response);
      refusal.wait = Number(request.getResponseHeader("Retry-After")) || 0;
      return reject(refusal);
    });
    request.addEventListener("error", () => reject(new Refusal(0)));
    request.addEventListener("abort", () => reject(new DOMException("cancelled", "AbortError")));
    signal.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

export function sleep(seconds) {
  return new Promise((resolve) => setTimeout(resolve, seconds * 1000));
}

/** An id that no other client makes: a UUID of version 4. */
export function makeId() {
  if (crypto.randomUUID) return crypto.randomUUID(); // there on localhost and https only
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}
