"""The model card: what a person should know before believing a bundle.

Made from the same facts as ``bundle.json`` and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leuko.judgement.outliers import FEATURES_KEPT, PORTRAITS_KEPT
from leuko.learning.facts import Facts

_METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "auroc": "AUROC",
    "ece": "ECE (0 is best)",
}


def write_card(facts: Facts) -> str:
    """The card in Markdown.

    Args:
        facts: Of the bundle; ``training`` as `leuko.training.train` fills it.
    """
    sections = [_introduce(facts)]
    if "adaptation" in facts.training:
        sections.append(_tell_adaptation(facts.training["adaptation"]))
    sections += [_tell_data(facts), _tell_figures(facts), _tell_limits(facts), _tell_use(facts)]
    return "\n\n".join(sections) + "\n"


def _introduce(facts: Facts) -> str:
    prepared = facts.preprocessing
    seen = (
        f"one leukocyte: a square of {prepared.window:g} µm around it"
        if prepared.view == "cell"
        else "the whole picture, squashed into a square"
    )
    views = "; the mean over quarter turns and mirror images counts" if prepared.views == 8 else ""
    light = (
        "In every picture the empty slide is brought to one grey first, whatever the lamp"
        if prepared.light == "matched"
        else "The pictures keep the light that the camera gave them"
    )
    return f"""# {facts.architecture}: {", ".join(facts.classes)}

**Research use only, not for diagnosis.**

A network that sorts white blood cells of stained smears into {len(facts.classes)} classes. Made by
Leuko {facts.leuko} on {facts.created}.

- Network: {facts.architecture}, {facts.features} features before the last layer.
- It sees {seen}, at {prepared.size} × {prepared.size} pixels{views}.
- {light}.
- It answers with one of its classes, or with *unidentified* where it isn't sure. It knows no other
  kinds of cells, and would sort one of them into a class it knows."""


def _tell_adaptation(told: Mapping[str, Any]) -> str:
    data, gain = told["data"], told["balanced_accuracy"]["gain"]
    counts = ", ".join(f"{name} {n:,}" for name, n in data["counts"].items())
    rows = "\n".join(
        f"| {title} | {_limits(told[key]['before'])} | {_limits(told[key]['after'])} |"
        for key, title in (("balanced_accuracy", "balanced accuracy"), ("accuracy", "accuracy"))
    )
    curve = "\n".join(f"| {p['labels']:,} | {_limits(p)} |" for p in told["curve"])
    notes = "".join(f"\n- {note}." for note in told["notes"])
    if told.get("layer_tested"):
        what = """The network is that of the bundle it was made from. What is said below of data and
figures is said of that one: on such cells classes are told apart as well as there, but ECE,
coverage and the share of unidentified cells have the temperature, thresholds and limits of
before."""
    else:
        what = """Everything before the last layer is that of the bundle it was made from. What is
said below of data and figures is said of that one, with its own last layer, temperature and
thresholds: no figure there is this bundle's. Measure it with `leuko evaluate` on cells that it
hasn't seen."""
    return f"""## Fitted to another microscope

{told["reason"]}

{what}

- Labelled cells: {data["cells"]:,} of {data["name"]} ({data["layout"]}): {counts}; recipe
  {data["recipe"]!r}, SHA-256 of ids, bytes, labels and groups `{data["sha256"]}`.
- Made from the bundle `{told["base"]}`.{notes}

| on these cells, none used for fitting (95 % interval over groups) | before | fitted again |
|---|---|---|
{rows}

The gain in balanced accuracy is {100 * gain["value"]:+.1f} points ({100 * gain["low"]:+.1f} to
{100 * gain["high"]:+.1f}). {told["outlook"]}

| labels | balanced accuracy |
|---|---|
{curve}"""


def _tell_data(facts: Facts) -> str:
    data, protocol = facts.training["data"], facts.training["protocol"]
    counts = ", ".join(f"{name} {n:,}" for name, n in data["counts"].items())
    kept = (
        ""
        if protocol.get("refit", True)
        else f" Of these {facts.training['metrics']['n']:,} were kept for the test, not trained on."
    )
    lines = [
        "## Trained on",
        f"- {data['name']} ({data['layout']}): {data['images']:,} images in {data['groups']:,} "
        f"groups: {counts}.{kept}",
        f"- Cleaned by the recipe {protocol['recipe']!r}; {data['rows']:,} rows before.",
        f"- {protocol['fit']['epochs']} epochs, start {protocol['init']}, seed {protocol['seed']}.",
        f"- Licence of the data: {data['licence']}.",
        f"- Credits: {data['credits']}.",
        f"- SHA-256 of ids, bytes, labels and groups: `{data['sha256']}`.",
    ]
    if data["layout"] == "demo":
        lines.append("- **The cells are drawn by a program: this model knows nothing of blood.**")
    return "\n".join([lines[0], "", *lines[1:]])


def _tell_figures(facts: Facts) -> str:
    metrics = facts.training["metrics"]
    rows = "\n".join(f"| {title} | {_limits(metrics[key])} |" for key, title in _METRICS.items())
    classes = "\n".join(
        f"| {name} | {row['n']:,} | {row['precision']:.3f} | {row['recall']:.3f} "
        f"| {row['f1']:.3f} |"
        for name, row in metrics["per_class"].items()
    )
    protocol = facts.training["protocol"]
    adapted = "adaptation" in facts.training
    title, where = (
        ("What was to be expected of the bundle it was made from", "that bundle")
        if adapted
        else ("What to expect of it", "this bundle")
    )
    who, then = (
        ("a network of the same recipe",
         f" The network in {where} was then trained on all of them, so it can't be judged on "
         "them any more.")
        if protocol.get("refit", True)
        else (f"the network in {where}", "")
    )  # fmt: skip
    return f"""## {title}

Each of {metrics["n"]:,} images was answered by {who}, which had seen neither it nor another image
of its group; {protocol["judged"]}.{then} On the cells of another laboratory expect less.

| measure | value (95 % interval over groups) |
|---|---|
{rows}

| class | n | precision | recall | F1 |
|---|---|---|---|---|
{classes}

{_tell_sureness(facts, metrics)}"""


def _tell_sureness(facts: Facts, metrics: Mapping[str, Any]) -> str:
    decision, coverage = facts.decision, metrics["coverage"]
    before, after = metrics["ece_before"], metrics["ece"]["value"]
    lines = [
        f"Without its temperature the ECE was {before:.3f}, with it {after:.3f}."
        if "adaptation" in facts.training  # the temperature in the facts is a later one
        else f"Temperature {decision.temperature:.3f}; without it the ECE is {before:.3f}, with it "
        f"{after:.3f}."
    ]
    if decision.coverage is not None:
        lines.append(
            f"A cell gets a set of classes that is to hold the true one in "
            f"{decision.coverage:.0%} of the cells of each class; measured on cells not used for "
            f"it: {coverage['observed']:.1%}. {_tell_states(metrics)}; of the others "
            f"{metrics['accuracy_of_the_rest']:.1%} were right."
        )
        few = [n for n, t in (decision.thresholds or {}).items() if t == 0]
        if few:
            lines.append(
                f"Of {', '.join(few)} there were too few cells for this coverage: these classes "
                "are in every set, so that most cells stay unidentified. Collect more of them."
            )
    return " ".join(lines)


def _tell_states(metrics: Mapping[str, Any]) -> str:
    unidentified = f"{metrics['unidentified']:.1%} of the cells"
    if "rejected" in metrics:
        return (
            "By the rules of use, with limits from other cells where those suffice, "
            f"{unidentified} stay *unidentified* and {metrics['rejected']:.1%} are *rejected*"
        )
    return (  # as it was counted before
        f"{unidentified} had no class or several in their set, or none likely enough, and stay "
        "*unidentified* (so do cells that are strange to the network or may be no leukocyte, "
        "which weren't counted)"
    )


def _tell_rejection(facts: Facts) -> str:
    if facts.decision.outliers is None:
        return (
            "- Pictures without a leukocyte are rejected; other things that look like one are not."
        )
    return f"""- *Rejected*, without any class: pictures in which no leukocyte is found, and those
  whose colour, grain and shapes lie farther from stained cells than those of {PORTRAITS_KEPT:.0%}
  of the training cells do after being changed as widely as laboratories differ.
- *Unidentified*, for a person to tell: also cells that the network finds stranger than
  {FEATURES_KEPT:.0%} of those that it hadn't seen in training.
- Neither is sure: what is no cell can lie within both limits, and a cell of another laboratory
  beyond."""


def _tell_limits(facts: Facts) -> str:
    data = facts.training["data"]
    return f"""## Where it ends

- It was tested on one set. Another stain, microscope or population isn't covered by the figures.
- Diseased, immature and artificial cells that aren't among its classes are sorted into them.
{_tell_rejection(facts)}
- Classes with few images ({min(data["counts"], key=data["counts"].get)}:
  {min(data["counts"].values()):,}) have wide limits whatever the totals say."""


def _tell_use(facts: Facts) -> str:
    parity = facts.training["parity"]
    return f"""## Use

```
leuko predict --model THIS-BUNDLE IMAGES
```

Needs no PyTorch. `model.onnx` takes cells as bytes, (B, {facts.preprocessing.size},
{facts.preprocessing.size}, 3), and gives logits and features. On {parity["cells"]:,} cells its
probabilities differ from PyTorch's by at most {parity["largest_difference"]:.1e}. Every part is
checked at every load; `sha256sum --check SHA256SUMS` does a part of it."""


def _limits(value: Mapping[str, float]) -> str:
    return f"{value['value']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
