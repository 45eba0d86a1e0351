"""All caps: whatever edgeprune waits for, reads or repeats has one of these limits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Caps in seconds (`_s`), bytes (`_bytes`) or counts."""

    # files
    toml_bytes: int = 1 << 20
    source_files: int = 5_000  # Python files beside a project file
    source_bytes: int = 4 << 20  # one of these files
    covered_objects: int = 100_000  # that a function of the user refers to, in the key of a project of objects
    convert_s: float = 600.0  # to convert a model of TensorFlow
    json_bytes: int = 256 << 20
    weights_bytes: int = 8 << 30
    hub_s: float = 15.0  # for an answer of Hugging Face's hub
    download_s: float = 3600.0  # of one model
    hub_layers: int = 1000  # of a configuration, and so are the next two
    hub_parameters: int = 1 << 24  # more than its weights have bytes
    hub_side: int = 8192  # of an image
    onnx_nodes: int = 50_000
    onnx_elements: int = 1 << 28  # of one tensor: a weight, a constant that is computed, or a result
    onnx_computed_bytes: int = 2 << 30  # of all constants that are computed
    # a model file that is measured
    model_bytes: int = (2 << 30) - 1  # what is parsed of it; weights may lie in files beside it
    ir_bytes: int = 64 << 20  # the network of OpenVINO's format, without weights
    model_tensors: int = 1000  # inputs, and outputs
    input_bytes: int = 1 << 30  # of one input
    bench_processes: int = 400  # of each file on each target
    bench_s: float = 30.0  # no further round begins after it; --time replaces it
    bench_patience_s: float = 15.0  # for measurements that are disturbed; --patience replaces it
    # the device
    identify_s: float = 60.0
    job_s: float = 120.0  # one fresh process, from start to reply
    engine_s: float = 900.0  # a process that first builds an engine on the device
    reply_bytes: int = 2 << 20  # one framed reply; its Python objects may take thirty times the memory
    noise_bytes: int = 64 << 20  # other output of the device between frames of one request
    output_bytes: int = 64 << 20  # one file that the device sends
    call_bytes: int = 256 << 20  # models on the device at the same time
    stderr_bytes: int = 64 << 10
    end_s: float = 5.0  # until the agent has ended by itself
    # the link
    connect_s: float = 15.0  # each step of a login: connection, banner, authentication, channel
    # A link that carries nothing for so long is broken. Keepalives are sent every 5 s, and the device answers them.
    silence_s: float = 20.0
    heal_s: float = 60.0  # to connect again after the link broke
    reconnects: int = 3  # of one operation
    host_silence_s: float = 60.0  # after which the agent treats the host as gone
    jumps: int = 4
    farm_s: float = 15.0  # for an answer of a labgrid coordinator; an exporter may take 10 s of it
    farm_updates: int = 20_000  # places and resources of a farm
    boards: int = 64  # that share the experiments of a profile
    install_s: float = 900.0
    known_hosts_bytes: int = 16 << 20
    certificate_bytes: int = 1 << 16  # of a host
    probe_s: float = 5.0  # for what the shell or the Python of a device answers, after a failure
    # releases
    sign_s: float = 30.0
    release_s: float = 900.0  # to check a bundle, build its engine on the device, and run it
    check_s: float = 60.0  # of this time, for one run of a release
    reload_s: float = 30.0  # for the target's command that notifies a server
    fleet_parallel: int = 8  # hosts that are worked on at the same time; --parallel replaces it
    fleet_parallel_most: int = 64
    host_s: float = 1800.0  # for one host of a fleet, from the connection to the answer; --host-time replaces it
    settle_s: float = 30.0  # after an interrupt, for hosts that are being changed
    audit_bytes: int = 512 << 10  # of a device's audit log that are read
    soak_most_s: float = 24 * 3600.0
    soak_check_s: float = 60.0  # between two health checks of a canary
    lease_wait_s: float = 24 * 3600.0  # with --wait
    lock_touch_s: float = 15.0  # between two signs of life of a run, in its lock
    lock_stale_s: float = 180.0  # without one, after which a run on another machine counts as dead; NFS may hide 60 s
    verify_s: float = 600.0  # to time both artifacts of a verdict; no further round begins after it
    report_bytes: int = 2_000_000  # of a report, as far as shorter lists allow
    report_json_bytes: int = 1 << 20  # of the records inside a report, of all runs together
    evidence_times: int = 16_000  # that a verdict keeps, of all processes
    evidence_discarded: int = 200  # processes that it keeps, the newest
    evidence_outputs: int = 8  # of a network, whose differences it keeps
    patience_s: float = 600.0  # of a run, for measurements that are disturbed; --patience replaces it
    pause_s: float = 15.0  # before disturbed measurements are repeated
    metric_s: float = 120.0  # time of the device for the outputs of one metric
    emulated_metric_s: float = 20.0  # the same on an emulated device; its second takes 4 to 20 s of this machine
    check_metric_s: float = 15.0  # the same in a check
    check_timed_s: float = 20.0  # time of the device for the quantiles of a check, each round
    pytest_lease_s: float = 600.0  # to wait for a device that another test holds
    history_bytes: int = 64 << 20
    history_records: int = 200  # the newest, in which level changes are detected
    # one timed process
    start_s: float = 1.0  # expected time to import the runtime and load the model
    warmup_s: float = 2.0
    timed_s: float = 0.25
    median_s: float = 0.1  # instead, for a median: processes differ more than parts of one, so more time tells little
    timed_runs_min: int = 5
    timed_runs_max: int = 1000
    # the virtual board
    board_build_s: float = 600.0
    board_boot_s: float = 90.0
    emulated_slowness: float = 100.0  # seconds of this machine that a second of an emulated device takes
    registry_s: float = 60.0  # without an answer of an OCI registry
    # the search
    confirm_rounds: int = 3
    confirm_rounds_open: int = 6  # while no plan within the budget uses it
    solver_s: float = 60.0
    size_rounds: int = 8  # in which the size of a plan's file corrects the next plan
    group_widths: int = 16  # candidate widths of a group
    profile_variants: int = 180
    front_points: int = 200
    sweep_cells: int = 1000
    compared_runs: int = 100
    # the trial before everything else
    trial_samples: int = 1024  # of the validation split, for the original network's metric
    trial_metric_s: float = 3.0  # to compute their outputs
    trial_read_s: float = 120.0  # to read a split once
    # training
    observed_bytes: int = 1 << 30  # of the original network at work, which are kept for other prunings of a sweep
    teacher_bytes: int = 64 << 20  # outputs of the original network that are kept for other trainings of a sweep
    importance_batches: int = 64  # for a data-driven importance score
    fisher_samples: int = 512
    curve_macs: int = 4 * 10**12  # multiply-accumulates to measure loss curves
    curve_rows: int = 32_768  # positions of a layer's input that are kept meanwhile
    curve_bytes: int = 512 << 20  # results of operations, and inputs of layers, that are kept meanwhile
    reconstruction_bytes: int = 2 << 30  # inputs of layers that a refit keeps, and those of a forward pass
    reconstruction_samples: int = 2048
    reconstruction_channels: int = 4096  # of a layer; larger matrix products take too long
    data_batches: int = 1_000_000  # of a split in one pass
    samples_s: float = 2.0  # to read a split for the digest of its samples; the same batches are read later
    samples_bytes: int = 1 << 30  # of these samples
    unlabelled_least: int = 20  # samples of [data] samples, so that each of three splits has some
    unlabelled_most: int = 1_000_000  # samples, and files of them
    unlabelled_file_bytes: int = 1 << 30  # one of these files that is read as a whole, unpacked
    unlabelled_kept_bytes: int = 1 << 30  # samples in memory, and as much of the original network's outputs
    traced_files: int = 20_000  # that data is made from; with more, it is read in every run
    epochs: int = 10_000
    checked_samples: int = 100_000  # of each split, in doctor
    # the command line
    message_chars: int = 2_000


LIMITS = Limits()
