"""A bad file gives one clear line with the file, the key and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from small import SMALLEST

from edgeprune.errors import UsageError
from edgeprune.frontends import toml
from edgeprune.pipeline.request import request

TARGET = '[connect]\ntransport = "local"\n[runtime]\nname = "onnxruntime"\n'


def changed(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", ["[model]", "missing"]),
        (changed(SMALLEST, 'factory = "m:build"\n', ""), ["[model] factory", "missing"]),
        (changed(SMALLEST, "factory", "factroy"), ["factroy", "factory"]),
        (changed(SMALLEST, "[model]", "[modle]"), ["modle", "model"]),
        (changed(SMALLEST, '"m:build"', '"m.build"'), ["[model] factory", "module:function"]),
        (changed(SMALLEST, '"m:build"', "7"), ["[model] factory", "7"]),
        (changed(SMALLEST, '"50%"', "50"), ["[budget] latency", "50"]),
        (changed(SMALLEST, '"50%"', '"fast"'), ["[budget] latency", "fast", "12 ms"]),
        (changed(SMALLEST, '"50%"', '"0 ms"'), ["[budget] latency", "0 ms"]),
        (changed(SMALLEST, '"50%"', '"-3 ms"'), ["[budget] latency", "-3 ms"]),
        (changed(SMALLEST, '"50%"', '"nan"'), ["[budget] latency", "nan"]),
        (changed(SMALLEST, '"50%"', '"inf ms"'), ["[budget] latency", "inf"]),
        (changed(SMALLEST, '"50%"', '"12"'), ["[budget] latency", "12"]),
        (changed(SMALLEST, 'latency = "50%"', 'goal = "slowest"'), ["[budget] goal = 'slowest'", "known: fastest"]),
        (changed(SMALLEST, 'valid = "m:valid"\n', ""), ["[data] valid is missing", "samples without labels"]),
        (changed(SMALLEST, "[budget]", 'samples = "*.npy"\n[budget]'), ["[data] samples and train exclude"]),
        (SMALLEST + "max_metric_drop = nan\n", ["[budget] max_metric_drop"]),
        (SMALLEST + "max_metric_drop = -1.0\n", ["[budget] max_metric_drop"]),
        (SMALLEST + '[prune]\nimportance = "tailor"\n', ["[prune] importance", "taylor"]),
        (SMALLEST + "[finetune]\nepochs = -1\n", ["[finetune] epochs"]),
        (SMALLEST + "[finetune]\nepochs = 1.5\n", ["[finetune] epochs"]),
        (SMALLEST + "[finetune]\nepochs = true\n", ["[finetune] epochs"]),
        (SMALLEST + "[finetune]\nlearning_rate = 0.0\n", ["[finetune] learning_rate"]),
        (SMALLEST + "[finetune]\nema = 1.0\n", ["[finetune] ema", "0.999"]),
        (SMALLEST + '[finetune]\noptimizer = "adam"\n', ["[finetune] optimizer", "did you mean adamw"]),
        (SMALLEST + "[finetune]\nweight_decay = -0.1\n", ["[finetune] weight_decay", "0.0001"]),
        (
            SMALLEST + '[finetune]\ntrainer = "m:t"\nepochs = 3\nema = 0.9\n',
            ["[finetune] trainer excludes epochs and ema"],
        ),
        (SMALLEST + "[preprocess]\nmean = 0.5\nstd = [1.0]\n", ["[preprocess] mean", "list of numbers"]),
        (SMALLEST + "[preprocess]\nmean = [0.5]\n", ["[preprocess] std", "missing"]),
        (SMALLEST + "[preprocess]\nmean = [0.5]\nstd = [1.0, 1.0]\n", ["[preprocess]", "1 numbers, std 2"]),
        (SMALLEST + "[preprocess]\nmean = [0.5]\nstd = [0.0]\n", ["[preprocess]", "std above zero"]),
        (SMALLEST + "[preprocess]\nmean = [nan]\nstd = [1.0]\n", ["[preprocess]", "finite"]),
        ("[model\n", ["TOML"]),
        ("\x00\x01", ["TOML"]),
    ],
)
def test_a_bad_project_file_names_the_file_and_the_key(text: str, named: list[str], tmp_path: Path) -> None:
    path = tmp_path / "edgeprune.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        toml.read_project(path)
    message = str(caught.value)
    assert message.count(str(path)) == 1 and "\n" not in message and "typing" not in message, message
    assert all(part in message for part in named), message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (changed(TARGET, "local", "shh"), ["[connect] transport", "shh", "ssh"]),
        (changed(TARGET, "local", "ssh"), ["[connect] host", "raspberrypi.local"]),
        (changed(TARGET, '"local"', '"local"\nhost = "a"'), ["[connect] host", 'transport = "ssh"']),
        (TARGET + '[deploy]\nhosts = ["a"]\n', ["[deploy] hosts", 'transport = "ssh"']),
        (TARGET + '[deploy]\nhosts = ["-oProxyCommand=x"]\n', ["[deploy] hosts"]),
        (TARGET + "[deploy]\nkeep = 1\n", ["[deploy] keep", "from 2"]),
        (TARGET + '[deploy]\nreload = "restart"\n', ["[deploy] reload", "a command in words"]),
        (TARGET + "[prepare]\njetson_clocks = true\n", ["[prepare]", 'name = "tensorrt"']),
        (TARGET + "[expect]\nclocks_pinned = true\n", ["clocks_pinned", 'name = "tensorrt"']),
        (TARGET + "[expect]\nclocks_pinned = false\n", ["[expect] clocks_pinned must be true", "False"]),
        *(
            (changed(TARGET, '"local"', f'"ssh"\nhost = "a"\n{pinned}') + f"[deploy]\nhosts = {hosts}\n", named)
            for pinned, hosts, named in (
                ("", '["b", "b"]', ["[deploy] hosts", "twice"]),
                (f'fingerprint = "SHA256:{"a" * 43}"', '["b"]', ["[connect] fingerprint", "known_hosts"]),
            )
        ),
        *(
            (changed(TARGET, '"local"', f'"ssh"\nhost = "a"\n{line}'), [f"[connect] {line.split()[0]}"])
            for line in (
                *('user = "-oProxyCommand=x"', 'user = "a;b"', 'user = "$(id)"', "port = 0", "port = 70000"),
                *('fingerprint = "MD5:00"', 'fingerprint = "SHA256:short"', 'identity = ""', "python = 3"),
            )
        ),
        *(
            (changed(TARGET, '"local"', f'"ssh"\nhost = "{name}"'), ["[connect] host"])
            for name in ("-oProxyCommand=touch x", "a b", "a;b", "a`b`", "a|b", "a'b", "")
        ),
        (changed(TARGET, "onnxruntime", "onnxruntme"), ["[runtime] name", "onnxruntime"]),
        (TARGET + "threads = 0\n", ["[runtime] threads"]),
        (TARGET + 'precision = "int4"\n', ["[runtime] precision", "int4", "int8"]),
        (TARGET + "cores = 2\n", ["cores"]),
    ],
)
def test_a_bad_target_file_names_the_file_and_the_key(text: str, named: list[str], tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        toml.read_target(path)
    message = str(caught.value)
    assert message.count(str(path)) == 1 and all(part in message for part in named), message


def test_a_precision_that_the_runtime_does_not_have_names_the_target_s_file(tmp_path: Path) -> None:
    (tmp_path / "edgeprune.toml").write_text(SMALLEST)
    target = tmp_path / "none.toml"
    target.write_text(changed(TARGET, "onnxruntime", "null") + 'precision = "int8"\n')
    with pytest.raises(UsageError, match=r"none\.toml: \[runtime\] precision = 'int8': null has no int8; known: fp32"):
        request(tmp_path, str(target))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"missing\.toml: does not exist; write one: edgeprune init"):
        toml.read_project(tmp_path / "missing.toml")
    with pytest.raises(UsageError, match=r"lcoal.*local"):
        toml.find_target("lcoal", tmp_path)
    with pytest.raises(UsageError, match=r"nowhere\.toml"):
        toml.find_target(str(tmp_path / ("deep" * 50) / "nowhere.toml"), tmp_path)


def test_targets_beside_the_project_come_first(tmp_path: Path) -> None:
    assert toml.find_target("local", tmp_path).name == "local.toml"
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "local.toml").write_text(TARGET)
    assert toml.find_target("local", tmp_path) == tmp_path / "targets" / "local.toml"


def test_the_option_replaces_the_file_s_budget(tmp_path: Path) -> None:
    path = tmp_path / "edgeprune.toml"
    path.write_text(SMALLEST)
    assert toml.read_project(path, "1.5 ms").budget.latency.ns == 1_500_000
    assert toml.read_project(path).budget.latency.fraction == 0.5
    with pytest.raises(UsageError, match="--budget"):
        toml.read_project(path, "soon")
