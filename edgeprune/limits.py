"""Every cap in one place: nothing in edgeprune waits, reads or loops without one of these."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Caps in seconds (`_s`), bytes (`_bytes`) or counts."""

    # files
    toml_bytes: int = 1 << 20
    source_files: int = 5_000  # Python files beside a project file
    source_bytes: int = 4 << 20  # of one of them
    json_bytes: int = 256 << 20
    weights_bytes: int = 8 << 30
    # the device
    identify_s: float = 60.0
    job_s: float = 120.0  # one fresh process, from start to reply
    engine_s: float = 900.0  # one with an engine to be built on the device first
    reply_bytes: int = 2 << 20  # one framed reply; as Python objects it may take thirty times as much
    noise_bytes: int = 64 << 20  # around the frames of one request
    output_bytes: int = 64 << 20  # one file that comes back
    call_bytes: int = 256 << 20  # of models on the device at a time
    stderr_bytes: int = 64 << 10
    end_s: float = 5.0  # for the agent to end by itself
    # the link
    connect_s: float = 15.0  # each step of getting in: connection, banner, authentication, channel
    silence_s: float = (
        20.0  # a link that carries nothing for so long is broken; the host beats every 5 s and is answered
    )
    heal_s: float = 60.0  # to get a broken link back
    reconnects: int = 3  # in one operation
    host_silence_s: float = 60.0  # after which the agent takes the host for gone
    jumps: int = 4
    install_s: float = 900.0
    # releases
    sign_s: float = 30.0
    release_s: float = 900.0  # to check a bundle, build what can only be built there, and run it
    check_s: float = 60.0  # of that: for a release to be run once
    reload_s: float = 30.0  # for the target's command to tell a server
    lease_wait_s: float = 24 * 3600.0  # with --wait
    metric_s: float = 120.0  # of the device's time for the outputs that a metric is computed from
    emulated_metric_s: float = 20.0  # likewise, where a second of the device takes 4 to 20 of ours
    check_metric_s: float = 15.0  # likewise, for a check
    check_timed_s: float = 20.0  # of times, a round, for the quantiles that a check is asked for
    pytest_lease_s: float = 600.0  # for a device that another test holds
    history_bytes: int = 64 << 20
    history_records: int = 200  # of which changes are looked for
    # one timed process
    start_s: float = 1.0  # expected: a process that imports the runtime and loads the model
    warmup_s: float = 2.0
    timed_s: float = 0.25
    timed_runs_min: int = 5
    timed_runs_max: int = 1000
    # the virtual board
    board_build_s: float = 600.0
    board_boot_s: float = 90.0
    emulated_slowness: float = 100.0  # of an emulated device's clock against ours, at most
    # the search
    confirm_rounds: int = 3
    solver_s: float = 60.0
    group_widths: int = 16  # candidate widths of one group
    profile_variants: int = 180
    # training
    importance_batches: int = 64  # read by a data-driven criterion
    fisher_samples: int = 512
    curve_macs: int = 40 * 10**12  # multiply-accumulates spent on measuring loss curves
    reconstruction_bytes: int = 2 << 30  # of what layers read, kept to fit weights to, and of a forward pass
    reconstruction_samples: int = 2048
    reconstruction_channels: int = 4096  # of a layer; products of more take too long
    data_batches: int = 1_000_000  # of one split in one pass
    epochs: int = 10_000
    checked_samples: int = 100_000  # of each split, by doctor
    # the shell of the command line
    message_chars: int = 2_000


LIMITS = Limits()
