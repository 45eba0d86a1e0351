"""A folder of save_pretrained as a model: the right class, example inputs, the processor's normalisation; nothing is run."""

from __future__ import annotations

import http.server
import json
import logging
import pickle
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError, SecurityError, UsageError
from edgeprune.frontends import hub
from edgeprune.frontends.data import Split
from edgeprune.frontends.model import Network
from edgeprune.frontends.toml import read_project
from edgeprune.limits import LIMITS
from edgeprune.network.survey import survey
from edgeprune.records import Project

pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, tuple[int, ...]]]] = {
    "vit": (
        "ViTForImageClassification",
        {**SMALL, "image_size": 32, "patch_size": 8, "num_labels": 5},
        {"pixel_values": (1, 3, 32, 32)},
    ),
    "convnext": (
        "ConvNextForImageClassification",
        {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "image_size": 32, "num_labels": 5},
        {"pixel_values": (1, 3, 32, 32)},
    ),
    "bert": (
        "BertForSequenceClassification",
        {**SMALL, "vocab_size": 100, "max_position_embeddings": 24, "num_labels": 3},
        {"input_ids": (1, 24), "attention_mask": (1, 24)},
    ),
    "roberta": (
        "RobertaForSequenceClassification",
        {**SMALL, "vocab_size": 100, "max_position_embeddings": 26, "num_labels": 3},
        {"input_ids": (1, 24), "attention_mask": (1, 24)},
    ),
    "wav2vec2": (
        "Wav2Vec2ForCTC",
        {
            **SMALL,
            "conv_dim": [16, 16],
            "conv_stride": [10, 8],
            "conv_kernel": [10, 8],
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 8,
            "num_conv_pos_embedding_groups": 4,
            "vocab_size": 12,
        },
        {"input_values": (1, 16000)},
    ),
}
PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
}
FILE = """
[model]
transformers = "{model}"
[data]
samples = "*.npy"
"""


def saved(name: str, folder: Path) -> Any:
    """Save a small model with random weights, and return it."""
    import transformers

    kind, config, _ = MODELS[name]
    made = getattr(transformers, kind)
    torch.manual_seed(0)
    model = made(made.config_class(**config)).eval()
    model.save_pretrained(folder)
    return model


def project(folder: Path, model: str = "model", more: str = "") -> Project:
    path = folder / "edgeprune.toml"
    path.write_text(FILE.format(model=model) + more)
    return read_project(path)


def change(file: Path, **values: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    """A folder that holds a vision transformer."""
    saved("vit", tmp_path / "model")
    return tmp_path


def refused(folder: Path, kind: type[EdgepruneError] = UsageError) -> str:
    """The one line of an error of a project with this model."""

    def called() -> None:
        network = Network(project(folder))
        network.module(*network.inputs)

    with pytest.raises(kind) as caught:
        called()
    assert type(caught.value) is kind and "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------- what a folder gives


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_gives_the_same_network_and_its_inputs(name: str, tmp_path: Path) -> None:
    model, shapes = saved(name, tmp_path / "model"), MODELS[name][2]
    network = Network(project(tmp_path))
    assert {key: tuple(x.shape) for key, x in zip(shapes, network.inputs, strict=True)} == shapes
    with torch.no_grad():
        expected = model(**dict(zip(shapes, network.inputs, strict=True))).logits
        torch.testing.assert_close(network.module(*network.inputs), expected)
    assert network.structure.names == ("logits",)


@pytest.mark.parametrize("name", ["bert", "convnext"])
def test_a_saved_model_has_groups_that_can_be_cut(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path / "model")
    network = Network(project(tmp_path))
    assert any(group.locked is None for group in survey(network.module, network.inputs).groups)


def test_texts_are_compared_without_labels_and_without_code(tmp_path: Path) -> None:
    saved("bert", tmp_path / "model")
    ids = np.random.default_rng(0).integers(1, 100, (40, 24))
    np.savez(tmp_path / "texts.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    given = project(tmp_path, more='[budget]\nlatency = "50%"\n')
    given = read_project(_with(given.path, samples='samples = "texts.npz"'))
    (inputs, targets), *_ = Split(given, "train")
    assert [tuple(x.shape) for x in inputs] == [(24, 24), (24, 24)] and targets.shape == (24, 3)


def _with(path: Path, **lines: str) -> Path:
    text = path.read_text()
    for key, line in lines.items():
        text = "\n".join(line if one.startswith(f"{key} =") else one for one in text.splitlines())
    path.write_text(text)
    return path


def test_the_tokenizers_limit_shortens_a_text(tmp_path: Path) -> None:
    saved("bert", tmp_path / "model")
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"model_max_length": 16}')
    assert Network(project(tmp_path)).inputs[0].shape == (1, 16)


def test_the_processors_normalisation_is_the_projects_unless_it_has_its_own(vit: Path) -> None:
    processor = vit / "model" / "preprocessor_config.json"
    processor.write_text(json.dumps(PROCESSOR))
    found = project(vit).preprocess
    assert found is not None
    pixels = torch.rand(2, 3, 4, 4) * 255
    mean, std = (torch.tensor(PROCESSOR[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    factor, shift = (torch.tensor(numbers).view(3, 1, 1) for numbers in (found.factor, found.shift))
    torch.testing.assert_close(pixels * factor + shift, (pixels / 255 - mean) / std)
    assert Network(project(vit)).notes == ("preprocess: that of the model's processor, so inputs are raw pixels",)
    own = project(vit, more="[preprocess]\nmean = [0.0]\nstd = [1.0]\n").preprocess
    assert own is not None and own.mean == (0.0,) and own.scale == 1.0
    change(processor, do_normalize=False)
    scaled = project(vit).preprocess
    assert (
        scaled is not None and (scaled.mean, scaled.std) == ((0.0,), (1.0,)) and scaled.scale == pytest.approx(1 / 255)
    )
    change(processor, do_rescale=False)
    assert project(vit).preprocess is None
    processor.unlink()
    assert project(vit).preprocess is None


def test_images_of_the_folder_are_raw_pixels_where_the_processor_scales(vit: Path) -> None:
    from PIL import Image

    (vit / "model" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    for number in range(20):
        Image.new("RGB", (32, 32), (number, 200, 255)).save(vit / f"{number}.png")
    given = read_project(_with(project(vit).path, samples='samples = "*.png"'))
    ((inputs,), _), *_ = Split(given, "valid")
    assert inputs.max() == 255 and inputs[:, 1].unique().item() == 200


def test_the_crop_of_the_processor_is_the_size_of_an_image(tmp_path: Path) -> None:
    saved("convnext", tmp_path / "model")
    size = {"size": {"shortest_edge": 48}, "crop_size": {"height": 40, "width": 44}, "do_center_crop": True}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, **size}))
    assert Network(project(tmp_path)).inputs[0].shape == (1, 3, 40, 44)


def test_the_users_inputs_replace_those_of_the_folder(vit: Path) -> None:
    (vit / "m.py").write_text("import torch\ndef inputs():\n    return {'pixel_values': torch.zeros(4, 3, 32, 32)}\n")
    given = read_project(_with(project(vit).path, transformers='transformers = "model"\ninputs = "m:inputs"'))
    assert Network(given).inputs[0].shape[0] == 4


def test_keys_cover_the_folder_and_the_version_of_transformers(vit: Path) -> None:
    before = project(vit).model.factory.sources()
    change(vit / "model" / "config.json", layer_norm_eps=1e-6)
    after = project(vit).model.factory.sources()
    assert {label for label in before if before[label] != after[label]} == {"file config.json"}
    assert {"file model.safetensors", "package transformers"} <= set(before)


def test_loading_prints_nothing(vit: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        _ = Network(project(vit)).module
    assert capfd.readouterr() == ("", "") and not caplog.records


# ---------------------------------------------------------------------------------------------------------- bad folders


def test_pickled_weights_are_refused(vit: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.write_text, (vit / "mark", "run")

    (vit / "model" / "model.safetensors").unlink()
    (vit / "model" / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))
    assert "pytorch_model.bin is not safetensors, and loading it may run code" in refused(vit, SecurityError)
    assert not (vit / "mark").exists()


def test_code_that_comes_with_a_model_is_never_run(vit: Path) -> None:
    (vit / "model" / "modeling_own.py").write_text(f"open({str(vit / 'mark')!r}, 'w')\nclass Own: pass\n")
    change(
        vit / "model" / "config.json",
        architectures=["Own"],
        auto_map={"AutoConfig": "modeling_own.Own", "AutoModel": "modeling_own.Own"},
    )
    assert "'Own' is code that comes with the model, which is never run" in refused(vit, SecurityError)
    assert not (vit / "mark").exists()


def test_a_shard_outside_the_folder_is_refused(vit: Path) -> None:
    weights = vit / "model" / "model.safetensors"
    weights.rename(vit / "other.safetensors")
    index = {"metadata": {}, "weight_map": {"classifier.bias": "../other.safetensors"}}
    (vit / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "which is outside its folder" in refused(vit, SecurityError)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architectures": ["PreTrainedModel", "ViTModel"]}, "architectures must name one class"),
        ({"architectures": None}, "architectures must name one class, not None; save the model again"),
        ({"architectures": ["ViTForMagic"]}, "has no model 'ViTForMagic'; install the version that has it"),
        ({"architectures": ["logging"]}, "has no model 'logging'"),
        ({"architectures": ["ViTForMaskedImageModeling"]}, "the weights lack 3 tensors of ViTForMaskedImageModeling"),
        ({"quantization_config": {"bits": 4}}, "the model is quantised; give the one in single precision"),
        ({"num_hidden_layers": 10**9}, "'num_hidden_layers' = 1000000000 is over 1000; correct it"),
        ({"hidden_size": 2**20}, "describes .* parameters, and the weights have"),
        ({"image_size": None, "architectures": ["ViTForImageClassification"], "patch_size": "x"}, "raises "),
    ],
)
def test_a_bad_configuration_is_one_line(vit: Path, values: dict[str, Any], message: str) -> None:
    import re

    change(vit / "model" / "config.json", **values)
    assert re.search(message, refused(vit))


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff\xff", b"[" * 100_000, b"{" + b" " * (2 << 20)])
def test_a_damaged_configuration_is_one_line(vit: Path, content: bytes) -> None:
    (vit / "model" / "config.json").write_bytes(content)
    assert "config.json" in refused(vit)


def test_damaged_weights_are_one_line(vit: Path) -> None:
    weights = vit / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "[model] transformers = 'model' raises" in refused(vit)


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    assert "the folder holds no config.json; give a folder that save_pretrained wrote" in refused(tmp_path)
    (tmp_path / "model" / "adapter_config.json").write_text("{}")
    assert "only an adapter: merge it into its model" in refused(tmp_path)
    with pytest.raises(UsageError, match="nowhere does not exist; correct the path"):
        Network(project(tmp_path, "nowhere")).module()


def test_a_processor_that_preprocess_cannot_express_is_one_line(vit: Path) -> None:
    file = vit / "model" / "preprocessor_config.json"
    for values, problem in (
        ({"do_flip_channel_order": True}, "has do_flip_channel_order"),
        ({"image_mean": None}, "names no image_mean and image_std"),
        ({"image_std": [0.0, 1.0, 1.0]}, "mean, std or scale: .* std above zero"),
        ({"image_mean": ["a"]}, "mean, std or scale: could not convert"),
    ):
        file.write_text(json.dumps(PROCESSOR))
        change(file, **values)
        with pytest.raises(UsageError, match=problem):
            project(vit)
        project(vit, more="[preprocess]\nmean = [0.0]\nstd = [1.0]\n")  # the project's own replaces it


def test_a_model_that_reads_its_own_answer_needs_the_users_inputs(tmp_path: Path) -> None:
    import transformers

    config = transformers.T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=50)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    assert "name an encoder, or give example inputs: [model] inputs" in refused(tmp_path)


# --------------------------------------------------------------------------------------------------------------- the hub


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def endpoint(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


def test_a_name_in_the_cache_needs_no_network(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint(monkeypatch, "http://127.0.0.1:9")
    revision = "0" * 40
    model = saved("vit", cache / "models--org--small-vit" / "snapshots" / revision)
    (cache / "models--org--small-vit" / "refs").mkdir()
    (cache / "models--org--small-vit" / "refs" / "main").write_text(revision)
    network = Network(project(tmp_path, "org/small-vit"))
    with torch.no_grad():
        torch.testing.assert_close(network.module(*network.inputs), model(*network.inputs).logits)


def test_offline_and_absent_is_one_line_at_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=r"'org/model': this is no folder, and the model is not in the cache.*OFFLINE"):
        project(tmp_path, "org/model")


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(UsageError, match=r"asking the hub failed: .*; correct the path or the name") as caught:
        project(tmp_path, "org/model")
    assert "\n" not in str(caught.value)


def test_a_hub_that_never_answers_is_one_line_after_the_deadline(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    endpoint(monkeypatch, silent)
    monkeypatch.setattr(hub, "LIMITS", replace(LIMITS, hub_s=0.2))
    with pytest.raises(UsageError, match="asking the hub failed: "):
        project(tmp_path, "org/model")


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does, for one model: "org/model"."""

    folder: Path
    asked: list[str]

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        files = [{"rfilename": file.name, "size": file.stat().st_size} for file in sorted(self.folder.iterdir())]
        name, data = self.path.rpartition("/")[2], None
        if self.path.startswith("/api/models/org/model/tree/"):
            data = json.dumps([{"type": "file", "path": one["rfilename"], **one, "oid": "0"} for one in files]).encode()
        elif self.path.startswith("/api/models/org/model"):
            data = json.dumps({"id": "org/model", "sha": "1" * 40, "siblings": files}).encode()
        elif self.path.startswith("/org/model/resolve/") and (self.folder / name).is_file():
            data = (self.folder / name).read_bytes()
        self.send_response(404 if data is None else 200)
        for key, value in {"Content-Type": "application/json", "X-Repo-Commit": "1" * 40, "ETag": f'"{name}"'}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data or b"")


@pytest.fixture
def online(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on this machine that has a vision transformer."""
    saved("vit", tmp_path / "hub")
    Hub.folder, Hub.asked = tmp_path / "hub", []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        endpoint(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        yield Hub
        server.shutdown()
        thread.join()


def test_a_model_is_downloaded_once_without_pickles_and_code(tmp_path: Path, online: type[Hub]) -> None:
    for name in ("pytorch_model.bin", "modeling_own.py", "README.md"):
        (online.folder / name).write_text("")
    network = Network(project(tmp_path, "org/model"))
    assert network.module(*network.inputs).shape == (1, 5)
    fetched = {path.rpartition("/")[2] for path in online.asked if "/resolve/" in path}
    assert fetched == {"config.json", "model.safetensors"}
    online.asked.clear()
    assert Network(project(tmp_path, "org/model")).inputs[0].shape == (1, 3, 32, 32)
    assert online.asked == []


def test_a_model_without_safetensors_or_that_is_not_there_is_one_line(tmp_path: Path, online: type[Hub]) -> None:
    (online.folder / "model.safetensors").rename(online.folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match="the hub has no safetensors, only what may run code; give another model"):
        project(tmp_path, "org/model")
    with pytest.raises(UsageError, match=r"'org/none': this is no folder.*asking the hub failed: .*404"):
        project(tmp_path, "org/none")


def test_a_call_without_an_end_is_left_after_its_time() -> None:
    never = threading.Event()
    began = time.monotonic()
    with pytest.raises(UsageError, match="no answer in 0 s"):
        hub._within(0.05, never.wait)
    assert time.monotonic() - began < 60
    never.set()


def test_only_names_of_the_hub_are_looked_up() -> None:
    assert hub.is_name("google/vit-base-patch16-224")
    for text in ("model", "./model", "../a/b", "/a/b", "a/b/c", "a\nb/c", "~/model", "C:\\a", ""):
        assert not hub.is_name(text)


def test_all_weights_are_of_the_class_that_was_saved(tmp_path: Path) -> None:
    """A head that was never trained is no model."""
    import transformers

    config = transformers.ViTConfig(**MODELS["vit"][1])
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "model")
    change(tmp_path / "model" / "config.json", architectures=["ViTForImageClassification"])
    assert "the weights lack 2 tensors of ViTForImageClassification, such as 'classifier.bias" in refused(tmp_path)


def test_half_precision_is_converted(tmp_path: Path) -> None:
    saved("vit", tmp_path / "model").half().save_pretrained(tmp_path / "model")
    parameters: list[Tensor] = list(Network(project(tmp_path)).module.parameters())
    assert {tensor.dtype for tensor in parameters} == {torch.float32}
