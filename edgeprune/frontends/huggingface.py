"""A folder that `save_pretrained` of Hugging Face's transformers wrote, as a model: `[model] transformers`.

Only configurations and safetensors are read. No pickle is loaded, and no code that comes with a model is run.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.errors import RuntimeMissing, SecurityError, UsageError, quoted, usage_error
from edgeprune.frontends import checkpoint
from edgeprune.limits import LIMITS
from edgeprune.records import Preprocess
from edgeprune.storage.store import read_capped

if TYPE_CHECKING:
    from torch import Tensor, nn

CONFIG, WEIGHTS = "config.json", "model.safetensors"
PROCESSORS = "preprocessor_config.json", "processor_config.json"
PICKLES = "pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack"
TOKENS = 512  # in the example inputs at most; some models take a hundred thousand
RATE = 16_000  # samples of a second of sound, if the processor names no rate
SILENT = 50  # the level of critical messages
SHOWN = 3  # names of tensors in a message
OTHERS = "or give example inputs: [model] inputs"

Json = Mapping[str, Any]


def network(path: Path) -> nn.Module:
    """The network in single precision, of the class that the configuration names.

    Raises:
        UsageError: a file is missing, or the weights are not those of this class.
        SecurityError: the folder needs a pickle, or code of its own.
        RuntimeMissing: transformers is not installed.
    """
    import torch

    config, kind = _config(path), _kind(path)
    _require_weights(path)
    settings = kind.config_class.from_dict(dict(config))
    _require_plausible(path, kind, settings)
    if hasattr(settings, "use_cache"):
        settings.use_cache = False  # a cache is no output of one call
    with _quiet():
        model, found = kind.from_pretrained(
            str(path),
            config=settings,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    if missing := sorted(found["missing_keys"]):
        shown = ", ".join(missing[:SHOWN])
        raise usage_error(
            f"{path}: the weights lack {len(missing)} tensors of {kind.__name__}, such as {quoted(shown)};"
            " train and save this model first"
        )
    return model  # type: ignore[no-any-return]


def example_inputs(path: Path) -> dict[str, Tensor]:
    """One sample of the sizes that the configuration and the processor name, by the names of the model's arguments.

    Raises:
        UsageError: they name no sizes, or the model takes something else.
    """
    import torch

    kind = _kind(path)
    config, processor = kind.config_class.from_dict(dict(_config(path))), _processor(path)
    main, arguments = kind.main_input_name, inspect.signature(kind.forward).parameters
    where = f"{path}: {kind.__name__}"
    if getattr(config, "is_encoder_decoder", False) and not kind.__name__.endswith("AudioClassification"):
        raise usage_error(f"{where} reads its own answer, one token at a time; name an encoder, {OTHERS}")
    if main == "input_ids":
        length = _tokens(path, config)
        reserved = {value for name, value in config.to_dict().items() if name.endswith("_token_id")}
        token = next(number for number in range(config.vocab_size) if number not in reserved)
        found = {"input_ids": torch.full((1, length), token)}
        return found | ({"attention_mask": torch.ones(1, length).long()} if "attention_mask" in arguments else {})
    shape = _shape(main, config, processor)
    if shape is None:
        raise usage_error(f"{where}: no file names the size of its input {main!r}; {OTHERS}")
    return {main: torch.zeros(1, *shape)}


def preprocess(path: Path) -> Preprocess | None:
    """The normalisation of the folder's image processor; None if it has none.

    Raises:
        UsageError: `[preprocess]` cannot express it.
    """
    processor = _processor(path) if path.is_dir() else {}
    if not {"image_mean", "image_processor_type", "do_rescale"} & processor.keys() or "num_frames" in _config(path):
        return None
    rescales, normalises = processor.get("do_rescale", True), processor.get("do_normalize", True)
    scale = processor.get("rescale_factor", 1 / 255) if rescales else 1.0
    mean, std = processor.get("image_mean"), processor.get("image_std")
    strange = [key for key in ("do_flip_channel_order", "rescale_offset", "include_top") if processor.get(key)]
    if strange or (normalises and (mean is None or std is None)):
        problem = f"has {strange[0]}" if strange else "names no image_mean and image_std"
        raise usage_error(f"{path}: the image processor {problem}; give [preprocess], which then replaces it")
    if not normalises:
        return Preprocess((0.0,), (1.0,), float(scale)) if rescales else None
    try:
        return Preprocess(_floats(mean), _floats(std), float(scale))
    except (TypeError, ValueError, UsageError) as error:
        raise usage_error(f"{path}: the image processor's mean, std or scale: {error}; correct them") from error


# -------------------------------------------------------------------------------------------------- what a folder holds


def _kind(path: Path) -> Any:
    """The class that the configuration names."""
    config = _config(path)
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise usage_error(
            f"{path / CONFIG}: architectures must name one class, not {quoted(names)}; save the model again"
        )
    try:
        import transformers
    except ImportError as error:
        raise RuntimeMissing(
            "transformers is not installed; install it: pip install 'edgeprune[huggingface]'"
        ) from error
    kind = getattr(transformers, names[0], None)
    if inspect.isclass(kind) and issubclass(kind, transformers.PreTrainedModel):
        return kind
    if "auto_map" in config:
        raise SecurityError(
            f"{path / CONFIG}: {quoted(names[0])} is code that comes with the model, which is never run;"
            " make the model in your own code: [model] factory"
        )
    raise usage_error(
        f"{path / CONFIG}: transformers {transformers.__version__} has no model {quoted(names[0])};"
        " install the version that has it, or use [model] factory"
    )


def _config(path: Path) -> Json:
    if path.is_dir() and not (path / CONFIG).is_file():
        adapter = (
            ", only an adapter: merge it into its model and save that"
            if (path / "adapter_config.json").is_file()
            else ""
        )
        raise usage_error(f"{path}: the folder holds no {CONFIG}{adapter}; give a folder that save_pretrained wrote")
    found = _json(path / CONFIG)
    if found.get("quantization_config"):
        raise usage_error(f"{path / CONFIG}: the model is quantised; give the one in single precision")
    return found


def _processor(path: Path) -> Json:
    """The settings of the processor of images or sounds; empty if there are none."""
    for file in (path / name for name in PROCESSORS):
        if file.is_file():
            found = _json(file)
            inner = found.get("image_processor", found.get("feature_extractor", found))
            return inner if isinstance(inner, dict) else {}
    return {}


def _json(file: Path) -> Json:
    try:
        found = json.loads(read_capped(file, LIMITS.toml_bytes))
    except (ValueError, RecursionError) as error:
        raise usage_error(f"{file} is not JSON; save the model again") from error
    if not isinstance(found, dict):
        raise usage_error(f"{file} is not a JSON object; save the model again")
    return found


def _require_weights(path: Path) -> None:
    """The weights must be safetensors in the folder, and not too large."""
    index = path / f"{WEIGHTS}{checkpoint.INDEX}"
    file = index if index.is_file() else path / WEIGHTS
    if not file.is_file():
        if pickles := [name for name in PICKLES if (path / name).is_file()]:
            raise SecurityError(
                f"{path}: {pickles[0]} is not safetensors, and loading it may run code;"
                " if you trust it, load it and save it by save_pretrained"
            )
        raise usage_error(f"{path}: the folder holds no {WEIGHTS}; give a folder that save_pretrained wrote")
    parts = checkpoint.files(file)
    if lost := [part.name for part in parts if not part.is_file()]:
        raise usage_error(f"{path}: {quoted(lost[0])} is missing, which {file.name} names; copy the whole folder")
    size = sum(part.stat().st_size for part in parts)
    if size > LIMITS.weights_bytes:
        raise usage_error(f"{path}: the weights have {size:,} bytes, over {LIMITS.weights_bytes:,}")


def _require_plausible(path: Path, kind: Any, settings: Any) -> None:
    """The network must not be far larger than its weights, so that a damaged configuration cannot fill the memory."""
    import torch

    for name, value in settings.to_dict().items():
        if isinstance(value, int) and ("layers" in name or "depth" in name) and value > LIMITS.hub_layers:
            raise usage_error(f"{path / CONFIG}: {quoted(name)} = {value} is over {LIMITS.hub_layers}; correct it")
    with torch.device("meta"), _quiet():
        needed = sum(tensor.numel() for tensor in kind(settings).parameters())
    stored = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    if needed > LIMITS.hub_parameters + stored:  # a parameter has a byte or more
        raise usage_error(
            f"{path}: the configuration describes {needed:,} parameters, and the weights have {stored:,} bytes;"
            " give the files of one model"
        )


# ---------------------------------------------------------------------------------------------------------- example inputs


def _tokens(path: Path, config: Any) -> int:
    """The length of a text: what the tokenizer says, or as many positions as the network has; at most `TOKENS`."""
    tokenizer = path / "tokenizer_config.json"
    given = _json(tokenizer).get("model_max_length") if tokenizer.is_file() else None
    positions = getattr(config, "max_position_embeddings", None) or TOKENS
    if config.pad_token_id == 1:  # models of fairseq count positions from the padding's number on
        positions -= 2
    return int(min([TOKENS, positions, *([given] if isinstance(given, int) and given > 0 else [])]))


def _shape(main: str, config: Any, processor: Json) -> tuple[int, ...] | None:
    """The shape of a sample of an image, a video or a sound; None if no file names it."""
    if main == "pixel_values" and (size := _image_size(config, processor)):
        frames = getattr(config, "num_frames", None)
        return (*([frames] if frames else []), getattr(config, "num_channels", 3), *size)
    bands = getattr(config, "num_mel_bins", None)
    if main == "input_values" and bands and hasattr(config, "max_length"):
        return config.max_length, bands  # a spectrogram
    if main == "input_values":
        return (int(processor.get("sampling_rate", RATE)),)  # a second of sound
    if main == "input_features" and bands and hasattr(config, "max_source_positions"):
        return bands, 2 * config.max_source_positions
    return None


def _image_size(config: Any, processor: Json) -> tuple[int, int] | None:
    """Height and width: of the processor's crop, of its resized image, or of the configuration."""
    crop = processor.get("crop_size") if processor.get("do_center_crop") else None
    resized = processor.get("size") if processor.get("do_resize", True) else None
    for size in (crop, resized, getattr(config, "image_size", None)):
        if isinstance(size, dict):
            size = [size.get("height", size.get("shortest_edge")), size.get("width", size.get("shortest_edge"))]
        pair = list(size) if isinstance(size, Sequence) else [size, size]
        sides = [side for side in pair if isinstance(side, int) and 0 < side <= LIMITS.hub_side]
        if len(pair) == len(sides) == 2:
            return sides[0], sides[1]
    return None


def _floats(value: Any) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, list) else (float(value),)


@contextmanager
def _quiet() -> Iterator[None]:
    """A context in which transformers prints neither progress nor reports; what matters is an error here."""
    from transformers.utils import logging

    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(SILENT)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
