"""The server's actor as an object of this process: threads that wait for their turn."""

import threading
import time

from dcasgd_jax import sim
from dcasgd_jax.runtime import messages
from dcasgd_jax.runtime.ray import server_process
from runtime.clients import Clients


def test_a_push_is_answered_when_its_grace_is_over_though_nobody_calls():
    run = Clients(protocol=sim.Grace(0.3), num_updates=9)
    actor = server_process.Server(run.whole, run.settings, None, None)
    actor.begin(run.whole)
    actor.start_clock()
    reply = messages.unpack_reply(actor.join(1, run.layout.describe()))
    gradient, answers = run.gradient(1, reply), []
    thread = threading.Thread(target=lambda: answers.append(actor.push(gradient)), daemon=True)
    start = time.monotonic()
    thread.start()
    thread.join(timeout=60)
    assert messages.unpack_reply(answers[0]).version == 1
    assert time.monotonic() - start >= 0.3
