"""Several processes as one run: how they connect, agree, and exit when one of them fails.

`jax.distributed` finds the processes on Cloud TPU, under Slurm and under Open MPI; elsewhere flags identify them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np

from big_vision_lite.errors import UserError, exit_code, first_line

TRY_AGAIN = 75
"""Exit code (EX_TEMPFAIL) of a run that may succeed when it is started again."""


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process's place in a run of several. No flag is needed on Cloud TPU, Slurm and Open MPI."""

    coordinator: str | None = None
    """HOST:PORT at which all processes reach process 0."""
    processes: int | None = None
    """Number of processes."""
    process: int | None = None
    """Index of this process, from 0."""
    init_timeout: int = 300
    """Seconds to wait for all processes."""

    def __post_init__(self) -> None:
        flags = (self.coordinator, self.processes, self.process)
        if any(flag is None for flag in flags) and any(flag is not None for flag in flags):
            raise UserError("--coordinator HOST:PORT, --processes N and --process I must be given together; on Cloud "
                            "TPU, Slurm and Open MPI none is needed")
        if self.init_timeout < 1:
            raise UserError(f"--init-timeout {self.init_timeout}; expected at least 1 second")
        if self.coordinator is None:
            return
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise UserError(f"--coordinator {self.coordinator!r}; expected HOST:PORT, such as 10.0.0.2:8476")
        if self.processes < 1 or not 0 <= self.process < self.processes:
            raise UserError(f"--process {self.process} of --processes {self.processes}; expected 0 to "
                            f"{max(self.processes, 1) - 1}")

    @property
    def on_this_machine(self) -> bool:
        """Whether the coordinator's address can be reached from this machine only."""
        return self.coordinator is not None and _is_loopback(self.coordinator.rpartition(":")[0])


def join(processes: Processes, environment: Mapping[str, str] = os.environ) -> None:
    """Connect to the run's other processes, before JAX initialises its devices. Does nothing for a single process.

    Raises:
      UserError: they do not find each other.
    """
    if jax.distributed.is_initialized():
        return
    if processes.coordinator is None:
        if not is_multi_process(environment):
            return
        arguments = {}
    else:
        if processes.on_this_machine and (hosts := machine_count(environment)) > 1:
            raise UserError(f"--coordinator {processes.coordinator} is a loopback address, and there are {hosts} "
                            "machines; give the address at which they reach process 0, or leave the flags out")
        if processes.processes == 1:
            return
        arguments = {"coordinator_address": processes.coordinator, "num_processes": processes.processes,
                     "process_id": processes.process}
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    hint = ", which only processes on one machine can" if processes.on_this_machine else ""
    address = f"; all must reach {processes.coordinator}{hint}" if processes.coordinator else ""

    def timed_out(cause: str = "") -> UserError:
        return UserError(f"the run's processes did not find each other within {processes.init_timeout} s{cause}"
                         f"{address}; --init-timeout waits for longer")

    def give_up() -> None:
        print(f"bvl: {timed_out()}", file=sys.stderr)
        hard_exit(2)

    # JAX would end the process without saying what it waited for: its own timeout is set to come second.
    timer = threading.Timer(processes.init_timeout, give_up)
    timer.daemon = True
    timer.start()
    handler = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and handler is not signal.SIG_IGN:  # JAX waits where Python's own handler is not called
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=processes.init_timeout + 60)
    except (RuntimeError, ValueError) as error:
        raise timed_out(f": {first_line(error)}") from None
    finally:
        timer.cancel()
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)


def is_multi_process(environment: Mapping[str, str]) -> bool:
    """Whether a TPU slice, Slurm or Open MPI started this process as one of several that `jax.distributed` can find."""
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in environment:
        return True
    if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return True
    if environment.get("JAX_PLATFORMS", "tpu").split(",")[0] not in ("", "tpu"):
        return False
    if "TPU_WORKER_HOSTNAMES" in environment:
        return machine_count(environment) > 1 or int(environment.get("MEGASCALE_NUM_SLICES", 1)) > 1
    chips = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return chips and "TPU_SKIP_MDS_QUERY" not in environment and _is_tpu_machine()


def machine_count(environment: Mapping[str, str]) -> int:
    """Number of machines that the run's processes were started on, as far as the environment tells."""
    names = environment.get("TPU_WORKER_HOSTNAMES", "")
    processes = int(environment.get("OMPI_COMM_WORLD_SIZE", 1))
    local_processes = int(environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", processes))
    return max(int(environment.get("SLURM_STEP_NUM_NODES", 1)), -(-processes // max(local_processes, 1)),
               len([name for name in names.split(",") if name]))


def _is_tpu_machine() -> bool:
    """Other devices may be passed through /dev/vfio too: TPU chips have Google's vendor id."""
    return any(vendor.read_text().strip() == "0x1ae0" for vendor in Path("/sys/bus/pci/devices").glob("*/vendor"))


def _is_loopback(host: str) -> bool:
    host = host.strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_primary() -> bool:
    """Whether this process writes what a run has one of: metrics, pictures, run.json."""
    return jax.process_index() == 0


def broadcast_from_0(value: int) -> int:
    """Process 0's value, in all processes: some may see a stale state of a shared disk."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(value))


def first_reported(report: str) -> str:
    """The report of the first process that has one (not ""), in all processes."""
    if jax.process_count() == 1:
        return report
    from jax.experimental import multihost_utils

    sizes = multihost_utils.process_allgather(np.int32(len(report.encode())))
    padded = np.frombuffer(report.encode().ljust(sizes.max(), b"\0"), np.uint8)
    reports = multihost_utils.process_allgather(padded) if sizes.any() else ()
    return next((bytes(line[:size]).decode() for line, size in zip(reports, sizes, strict=False) if size), "")


def barrier(name: str) -> None:
    """Return once all processes have reached this point."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def all_agree_to_stop(count: int) -> bool:
    """Whether any process received SIGTERM: true in all at the same ``count``. Each must ask with 1, 2, 3 and so on."""
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(count)


@contextlib.contextmanager
def leaving_on_error() -> Iterator[None]:
    """One of several processes that fails must not wait for the others, which wait for it: it prints the error and
    exits at once, and they exit when they notice. A single process raises as usual."""
    try:
        yield
    except KeyboardInterrupt:  # before the loop collects signals
        if not jax.distributed.is_initialized():
            raise
        print("bvl: interrupted", file=sys.stderr)
        hard_exit(128 + signal.SIGINT)
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        code = TRY_AGAIN
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            print(f"bvl: process {jax.process_index()} cannot go on, another one or the network between them is gone: "
                  f"{first_line(error)}; start the same command again for all, it goes on from the newest checkpoint",
                  file=sys.stderr)
        elif exit_code(error) == 2 and not isinstance(error, OSError):  # a disk may be back later
            code = 2
        hard_exit(code)


def hard_exit(code: int) -> NoReturn:
    """Exit at once. An orderly exit would wait for minutes for processes that may never come."""
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
