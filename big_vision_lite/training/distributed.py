"""Several processes as one run: how they find each other, what they agree on, and how one leaves when another is gone.

`jax.distributed` knows processes on Cloud TPU, under Slurm and under Open MPI; elsewhere flags say who is who.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

import jax

from big_vision_lite.errors import UserError

TRY_AGAIN = 75
"""Exit code (EX_TEMPFAIL) of a run that was stopped by what may be over when it is started again."""


@dataclasses.dataclass(frozen=True)
class Processes:
    """Which of a run's processes this one is. On Cloud TPU, Slurm and Open MPI nothing needs to be said."""

    coordinator: str | None = None
    """HOST:PORT at which process 0 can be reached by all."""
    processes: int | None = None
    """How many there are."""
    process: int | None = None
    """Which one this is, from 0."""
    init_timeout: int = 300
    """Seconds to wait for all of them."""

    def __post_init__(self) -> None:
        given = (self.coordinator, self.processes, self.process)
        if any(v is None for v in given) and any(v is not None for v in given):
            raise UserError("--coordinator HOST:PORT, --processes N and --process I come together; on Cloud TPU, Slurm "
                            "and Open MPI none is needed")
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
        """Whether all of them must be here, because others could not reach the coordinator."""
        return self.coordinator is not None and _is_loopback(self.coordinator.rpartition(":")[0])


def join(processes: Processes, environment: Mapping[str, str] = os.environ) -> None:
    """Become one of a run's processes, before JAX looks for devices. Does nothing where there is but one.

    Raises:
      UserError: the others cannot be found, or could not find this one.
    """
    if jax.distributed.is_initialized():
        return
    if processes.coordinator is None:
        if not started_together(environment):
            return
        given = {}
    else:
        if processes.on_this_machine and (hosts := machines(environment)) > 1:
            raise UserError(f"--coordinator {processes.coordinator} is this machine's name for itself, and there are "
                            f"{hosts} machines; give the address at which they reach process 0, or leave the flags out")
        if processes.processes == 1:
            return
        given = {"coordinator_address": processes.coordinator, "num_processes": processes.processes,
                 "process_id": processes.process}
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    hint = ", which only processes on one machine can" if processes.on_this_machine else ""
    where = f"; all must reach {processes.coordinator}{hint}" if processes.coordinator else ""

    def in_vain(why: str = "") -> UserError:
        return UserError(f"the run's processes did not find each other within {processes.init_timeout} s{why}{where}; "
                         "--init-timeout waits for longer")

    def give_up() -> None:
        print(f"bvl: {in_vain()}", file=sys.stderr)
        leave(2)

    # JAX would end the process itself, without a word of what was waited for; it is given the time to be second.
    waiting = threading.Timer(processes.init_timeout, give_up)
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(**given, initialization_timeout=processes.init_timeout + 60)
    except (RuntimeError, ValueError) as error:
        raise in_vain(f": {_first_line(error)}") from None
    finally:
        waiting.cancel()


def started_together(environment: Mapping[str, str]) -> bool:
    """Whether a TPU slice, Slurm or Open MPI started this process as one of several that `jax.distributed` knows."""
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in environment:
        return True
    if int(environment.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return True
    if environment.get("JAX_PLATFORMS", "tpu").split(",")[0] not in ("", "tpu"):
        return False
    if "TPU_WORKER_HOSTNAMES" in environment:
        return machines(environment) > 1 or int(environment.get("MEGASCALE_NUM_SLICES", 1)) > 1
    chips = any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*"))
    return chips and "TPU_SKIP_MDS_QUERY" not in environment and _is_tpu_machine()


def machines(environment: Mapping[str, str]) -> int:
    """On how many machines the run's processes were started, as far as the environment says."""
    names = environment.get("TPU_WORKER_HOSTNAMES", "")
    together = int(environment.get("OMPI_COMM_WORLD_SIZE", 1))
    here = int(environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", together))
    return max(int(environment.get("SLURM_STEP_NUM_NODES", 1)), -(-together // max(here, 1)),
               len([name for name in names.split(",") if name]))


def _is_tpu_machine() -> bool:
    """A machine may pass other things through /dev/vfio: Google's vendor id tells TPU chips from them."""
    return any(vendor.read_text().strip() == "0x1ae0" for vendor in Path("/sys/bus/pci/devices").glob("*/vendor"))


def _is_loopback(host: str) -> bool:
    host = host.strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_first() -> bool:
    """Whether this process writes what a run has once: metrics, pictures, run.json."""
    return jax.process_index() == 0


def agreed(value: int) -> int:
    """Process 0's value, in all: what each reads for itself from a shared disk may be older in some."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(value))


def meet(where: str) -> None:
    """Return once all processes have come to this point."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(where)


def all_agree_to_stop(step: int) -> bool:
    """Whether SIGTERM came to any process: true in all after the same step. Each asks once after each step."""
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def leaving_on_error() -> Iterator[None]:
    """Of several processes, one that fails within must not wait for the others, which wait for it: it says why and
    ends, and they end as soon as they find it gone. A single process raises as ever."""
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        bad_input = isinstance(error, UserError)
        if bad_input:
            print(f"bvl: {error}", file=sys.stderr)
        elif isinstance(error, jax.errors.JaxRuntimeError):
            print(f"bvl: process {jax.process_index()} cannot go on, another one or the network between them is gone: "
                  f"{_first_line(error)}; start the same command again in all, it goes on from the newest checkpoint",
                  file=sys.stderr)
        else:
            traceback.print_exc()
        leave(2 if bad_input else TRY_AGAIN)


def leave(code: int) -> NoReturn:
    """End this process at once. An orderly end would wait, for minutes, for processes that may never come."""
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
