"""A Ray cluster: one that runs, or one of this machine alone that lasts as long as the work."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
from pathlib import Path
from typing import Any

from transllm.errors import MissingExtraError, ModelError, kind_and_line

_SHORT_PATH = 28  # characters of a temporary folder in which the names of Ray's sockets fit


class Cluster:
    """The connection to a cluster, or a cluster of this machine alone.

    Args:
        address: see ``RayEngine``.
        cpus: of a cluster that is started here.
    """

    def __init__(self, address: str | None, *, cpus: int) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # before Ray is imported: it reads it then
        try:
            import ray
        except ModuleNotFoundError:
            raise MissingExtraError("ray", "ray", "Spreading conversations over workers (recover.ray)") from None
        # Ray prints to standard output that a worker has ended, whatever its log level; here that is a line of the log.
        ray._private.worker.print_to_stdstream = lambda *said, **how: None
        self._folder: Path | None = None
        self._ours = not ray.is_initialized()
        if not self._ours:  # the program that uses this library has its own connection
            return
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if address is not None:
            self._connect(address, **options)
            return
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir=None if len(tempfile.gettempdir()) <= _SHORT_PATH else "/tmp"))
        self._connect("local", num_cpus=cpus, include_dashboard=False, _temp_dir=str(self._folder), **options)

    def _connect(self, address: str, **options: Any) -> None:
        import ray

        before = signal.getsignal(signal.SIGTERM)
        try:
            for attempt in (1, 2):  # a busy machine may take longer than Ray waits for its own processes
                try:
                    ray.init(address, **options)
                    break
                except Exception as error:
                    ray.shutdown()
                    if attempt == 2 or address != "local":
                        raise self._refused(address, error) from None
        except BaseException:
            self.close()
            raise
        finally:
            if threading.current_thread() is threading.main_thread() and before is not None:
                signal.signal(signal.SIGTERM, before)  # Ray puts its own in place

    @staticmethod
    def _refused(address: str, error: Exception) -> ModelError:
        if address == "local":
            return ModelError(f"Ray did not start on this machine ({kind_and_line(error)}). Run the same command again; if it fails "
                              "again, take recover.ray out of the recipe.")
        return ModelError(f"No Ray cluster answers at '{address}' ({kind_and_line(error)}). Start one with 'ray start --head', or mend "
                          "recover.ray.address.")

    def close(self) -> None:
        """Leave; what was started here ends and its folder goes."""
        import ray

        if self._ours:
            ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @staticmethod
    def share(workers: int) -> int:
        """Processors of a worker, if they share out all that there are and none spans machines."""
        cpus = [int(machine["CPU"]) for machine in _machines() if machine.get("CPU", 0) >= 1] or [1]
        return max(1, min(sum(cpus) // workers, *cpus))

    @staticmethod
    def seats(cpus: int, gpus: float) -> int:
        """For how many such workers the machines have room, other work left aside.

        Raises:
            ModelError: for none.
        """
        asked, machines = {"CPU": cpus, "GPU": gpus}, _machines()
        if not machines:
            raise ModelError("The Ray cluster has no machine left. Run the same command again: replies so far are kept.")
        seats = sum(int(min(machine.get(kind, 0.0) / amount for kind, amount in asked.items() if amount)) for machine in machines)
        if not seats:
            raise ModelError(f"No machine of the Ray cluster has room for a worker with {cpus} processors and {gpus:g} GPUs. "
                             "Lower recover.ray.cpus or recover.ray.gpus, or start Ray on a machine that has them.")
        return seats


def _machines() -> list[dict[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
