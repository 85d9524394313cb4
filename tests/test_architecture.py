"""The house: floors, doors, and what must not be loaded for what."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import leuko

SOURCE = Path(leuko.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))

# A module may import from its own floor and from those before it.
FLOORS = [
    {"leuko.errors"},
    {"leuko.storage", "leuko.engine"},
    {
        "leuko.data",
        "leuko.judgement.metrics",
        "leuko.judgement.calibration",
        "leuko.judgement.outliers",
        "leuko.run",
    },
    {"leuko.learning"},
    {"leuko.judgement"},
    {"leuko.use"},
    {"leuko.settings", "leuko.watcher", "leuko.meter"},
    {"leuko.plan", "leuko.routes"},
    {"leuko.preparation"},
    {
        "leuko.study",
        "leuko.laboratories",
        "leuko.training",
        "leuko.inspection",
        "leuko.evaluation",
        "leuko.microscope",
        "leuko.conversion",
    },
    {"leuko.pretraining"},
    {"leuko.progress", "leuko.service"},
    {"leuko.commands"},
    {"leuko.cli"},
]

# library → modules that may import it, as prefixes
DOORS = {
    "captum": ("leuko.learning.attention",),
    "timm": ("leuko.learning.models",),
    "torchvision": ("leuko.learning.models",),
    "torch": ("leuko.learning",),
    "matplotlib": (
        "leuko.judgement.plots",
        "leuko.judgement.comparison_plots",
        "leuko.judgement.transfer_plots",
        "leuko.judgement.evaluation_plots",
        "leuko.judgement.adaptation_plots",
        "leuko.judgement.pictures",
        "leuko.judgement.canvas",
    ),
    "jinja2": ("leuko.judgement.page",),
    "cyclopts": ("leuko.cli", "leuko.commands"),
    "rich": ("leuko.progress",),
    "kagglehub": ("leuko.data.downloads",),
    # Batches encode what they show, as cameras do; they read no file.
    "simplejpeg": ("leuko.data.image", "leuko.data.headers", "leuko.learning.batches"),
    "PIL": ("leuko.data",),
    "cv2": (
        "leuko.data.stain",
        "leuko.data.scales",
        "leuko.data.likeness",
        "leuko.data.registration",
        "leuko.data.measurements",
        "leuko.data.portraits",
    ),
    "multiprocessing": ("leuko.engine",),
    "sqlalchemy": (
        "leuko.service.tables",
        "leuko.service.store",
        "leuko.service.shelf",
        "leuko.service.fields",
        "leuko.service.reviews",
        "leuko.service.signatures",
        "leuko.service.adapted",
        "leuko.service.arbitration",
        "leuko.service.portraits",
        "leuko.service.migrations",
    ),
    "alembic": ("leuko.service.migrations",),
    "fastapi": ("leuko.service",),
    "statsmodels": ("leuko.judgement.comparison",),
    "safetensors": ("leuko.learning",),
    "onnxruntime": ("leuko.learning.inference", "leuko.learning.eight_bits"),
    "openvino": ("leuko.learning.inference",),
    "reportlab": ("leuko.use.differential_pdf",),
    "onnx": ("leuko.learning.eight_bits",),
    "onnxscript": (),
    "starlette": ("leuko.service",),
    "uvicorn": ("leuko.service.server",),
    "prometheus_client": ("leuko.service.metrics",),
}
FORBIDDEN = {"pickle", "joblib", "dill", "shelve", "marshal"}


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Full names of all that a module imports, inside functions too; not what is for types only."""
    found: set[str] = set()
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def floor_of(name: str) -> int | None:
    fitting = [
        (len(prefix), floor)
        for floor, prefixes in enumerate(FLOORS)
        for prefix in prefixes
        if name == prefix or name.startswith(prefix + ".")
    ]
    return max(fitting)[1] if fitting else None


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_downwards_only(path: Path):
    own = floor_of(name_of(path))
    if own is None:
        assert name_of(path) == "leuko", f"{name_of(path)} has no floor; give it one"
        return
    above = {i for i in imports_of(path) if (floor_of(i) or 0) > own}
    assert not above, f"{name_of(path)} imports upwards: {sorted(above)}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_each_heavy_library_has_one_door(path: Path):
    for imported in imports_of(path):
        library = imported.split(".")[0]
        assert library not in FORBIDDEN, f"{name_of(path)} imports {library}"
        doors = DOORS.get(library)
        assert doors is None or name_of(path).startswith(doors), (
            f"{name_of(path)} imports {library}, whose door is {doors}"
        )


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_has_a_name_that_says_nothing(path: Path):
    assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc", "base"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_runs_code_from_data(path: Path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"eval", "exec", "torch.load", "yaml.load", "os.system"}
            for keyword in node.keywords:
                pair = (keyword.arg, ast.unparse(keyword.value))
                assert pair not in {("allow_pickle", "True"), ("shell", "True")}, pair


HEAVY = ("torch", "torchvision", "timm", "matplotlib", "sklearn", "scipy", "polars")


@pytest.mark.parametrize(
    "code",
    [
        "import leuko",
        "import leuko.cli; leuko.cli.main(['--help'])",
        "import leuko.cli; leuko.cli.main(['compare', '--help'])",
        "import leuko.cli; assert leuko.cli.main(['compare', '--sise', '3']) == 2",
        "import leuko.cli; assert leuko.cli.main(['compare', '--models', 'resnet19']) == 2",
        "import leuko.cli; assert leuko.cli.main(['compare', '--size', '20']) == 2",
    ],
)
def test_a_quick_answer_loads_nothing_heavy(code: str):
    script = f"{code}\nimport sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]")


def test_the_process_that_compares_trains_or_predicts_never_loads_torch():
    script = (
        "import leuko.study, leuko.training, leuko.inspection, leuko.progress, "
        "leuko.use.predictor, leuko.use.slides, leuko.evaluation, leuko.microscope, sys; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_the_public_names_are_fixed_and_all_there():
    assert leuko.__all__ == [
        "__version__",
        "adapt",
        "audit",
        "clean",
        "compare",
        "differential",
        "evaluate",
        "fetch",
        "find_leukocytes",
        "load",
        "pretrain",
        "read_image",
        "scan",
        "train",
    ]
    for name in leuko.__all__:
        assert getattr(leuko, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = leuko.nothing
