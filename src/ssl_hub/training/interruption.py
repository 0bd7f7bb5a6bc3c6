"""Signals that ask a run to end: preemption on a cluster, Ctrl-C, a closed terminal."""

import os
import signal
import threading
import time
from types import FrameType

import torch
from accelerate import Accelerator

from ..distributed import gather

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopSignals:
    """While it is entered, a first signal is only noted, so that the loop can end after a whole step.

    A second one ends the process at once. Signals that the process ignores, SIGHUP under nohup for one, stay ignored.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.received, self.received_at = 0, 0.0
        self.last: tuple[torch.Tensor, torch.Event | None] | None = None  # of all processes, and when it has arrived
        self.handlers: dict = {}

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # where Python lets no one set a handler
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                self.handlers[number] = signal.signal(number, self._note)

    def __exit__(self, *_) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}

    def agreed(self) -> int:
        """The signal that all processes stop for, or 0; every process has to ask once a step.

        Of several processes the answer is that of the step before: the device is not waited for.
        """
        if self.accelerator.num_processes == 1:
            return self.received
        device, last = self.accelerator.device, self.last
        largest = gather(torch.full((1,), self.received, device=device)).max().to("cpu", non_blocking=True)
        # Of this step; without it a device would be waited for until it has done the next one, too.
        event = None if device.type == "cpu" else torch.get_device_module(device).current_stream().record_event()
        self.last = largest, event
        if last is None:
            return 0
        largest, event = last
        if event is not None:
            event.synchronize()
        return int(largest)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.received:
            self.received, self.received_at = number, now
        # A launcher passes on what a terminal or a cluster has sent to all processes already: that is no second one.
        elif now - self.received_at > 1:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
