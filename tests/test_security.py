"""Nothing that is read runs code: no module unpickles, evaluates text or imports by name."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = [ROOT / "train.py"]
CODE += [
    path
    for folder in ("bop_optax", "training", "experiments", "benchmarks", "docs/examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
FORBIDDEN = [
    r"^\s*(import|from) (pickle|cPickle|_pickle|dill|cloudpickle|joblib|marshal|shelve)\b",
    r"\ballow_pickle\s*=\s*True\b",
    r"(?<![\w.])(eval|exec|__import__)\(",
    r"\bimport_module\(",
    r"\byaml\.load\(",
    r"\btorch\.load\(",
]


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_runs_what_it_reads(path):
    for line in path.read_text().splitlines():
        assert not [pattern for pattern in FORBIDDEN if re.search(pattern, line)], line


def test_the_patterns_find_what_they_forbid():
    lines = [
        "import pickle",
        "    from dill import loads",
        "np.load(file, allow_pickle=True)",
        "value = eval(text)",
        "importlib.import_module(name)",
        "yaml.load(file)",
        "weights = torch.load(path)",
    ]
    for line in lines:
        assert [pattern for pattern in FORBIDDEN if re.search(pattern, line)], line
    for line in ("model.eval()", "jnp.eval_shape(f)", "jax.block(exec_time)"):
        assert not [pattern for pattern in FORBIDDEN if re.search(pattern, line)], line
