"""The setup verb."""

from __future__ import annotations


def platform_options(machine: str, python: tuple[int, int], glibc: tuple[int, int]) -> list[str]:
    """pip's options for wheels of another machine: its processor, its Python, and every glibc up to its own.

    Each tag is named: without the newest that fits, pip takes an old release in silence.
    """
    tags = [f"manylinux_{glibc[0]}_{minor}_{machine}" for minor in range(glibc[1], 16, -1)] + [f"manylinux2014_{machine}"]
    version = f"{python[0]}{python[1]}"
    options = ["--only-binary=:all:", "--implementation", "cp", "--python-version", version]
    for abi in (f"cp{version}", "abi3", "none"):
        options += ["--abi", abi]
    for tag in tags:
        options += ["--platform", tag]
    return options
