"""What `ray.train` is given and cannot use: one clear error each, before any process starts."""

import contextlib
import socket
import threading
import time

import calls
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

pytest.importorskip("ray")
from dcasgd_jax import sim
from dcasgd_jax.runtime.ray import cluster
from runtime import clients

GOOD = dict(
    loss_fn=problems.softmax_loss,
    params=problems.softmax_params(),
    tx=optax.sgd(0.1),
    batches_fn=clients.batches_fn,
    num_workers=2,
    num_updates=5,
)
NOT_FINITE = {**problems.softmax_params(), "b": np.array([0, np.nan, 0], np.float32)}

BAD = {
    "loss_fn": (dict(loss_fn=None), TypeError, "loss_fn must be a function, got None"),
    "batches_fn": (dict(batches_fn=[1, 2]), TypeError, "batches_fn must be a function, got .1, 2"),
    "tx not called": (dict(tx=optax.sgd), TypeError, r"the function sgd itself: call it, sgd\("),
    "tx": (dict(tx=0.1), TypeError, r"tx must be an optax transformation, such as"),
    "per_push": (dict(per_push=optax.sgd), TypeError, "per_push must be an optax transformation"),
    "protocol's class": (dict(protocol=sim.Synchronous), TypeError,
                         r"the class Synchronous itself: call it, Synchronous\("),
    "protocol's name": (dict(protocol="synchronous"), TypeError, "protocol must be a protocol, "),
    "delays' class": (dict(delays=sim.ConstantTime), TypeError, "the class ConstantTime itself"),
    "delays": (dict(delays=0.1), TypeError, "delays must be a worker-time law, such as"),
    "num_workers": (dict(num_workers="3"), TypeError, "num_workers must be an integer >= 1"),
    "num_updates": (dict(num_updates=2.5), TypeError, "num_updates must be an integer >= 1"),
    "num_shards": (dict(num_shards=0), ValueError, "num_shards must be an integer >= 1, got 0"),
    "sharded": (dict(num_shards=2, protocol=sim.Sampled(1, 0)), ValueError,
                "several servers: workers might wait for one another"),
    "sharded quorum": (dict(num_shards=2, protocol=sim.Quorum(2)), ValueError, "num_shards=1"),
    "seed": (dict(seed=-1), ValueError, "seed must be an integer >= 0"),
    "max_restarts": (dict(max_restarts=None), TypeError, "max_restarts must be an integer"),
    "checkpoint": (dict(checkpoint="here"), TypeError, "checkpoint must be where to save the run"),
    "log": (dict(log=3), TypeError, "log must be the path of a file, got 3"),
    "progress": (dict(progress=True), TypeError, "progress must be a function, got True"),
    "address": (dict(address=6379), TypeError, "address must be a text such as 'host:6379'"),
    "options": (dict(worker_options="gpu"), TypeError, "worker_options must be a dict of Ray's"),
    "num_cpus": (dict(server_options={"num_cpus": "2"}), ValueError, "num_cpus in server_options"),
    "metrics": (
        dict(recording=sim.Recording(metrics="cosine")), ValueError,
        r"metrics must be .* \['cosine'\]",
    ),
    "every": (dict(recording=sim.Recording(every=2)), ValueError, "A live run traces every push"),
    "eval_versions": (
        dict(recording=sim.Recording(eval_versions=5)), ValueError, "evaluates nothing",
    ),
    "loggers": (
        dict(recording=sim.Recording(logger=sim.PerMember([]))), ValueError, "has no members",
    ),
    "logger": (dict(recording=sim.Recording(logger=print)), TypeError, "Recording.logger must be"),
    "gap": (dict(recording=sim.Recording(metrics=["gap"])), ValueError, 'does not trace "gap"'),
    "params": (dict(params={"w": "x"}), TypeError, r"params\['w'\] must be an array, got 'x'"),
    "integers": (dict(params={"n": 3}), TypeError, r"params\['n'\] holds int32"),
    "complex": (dict(params={"w": 1j}), TypeError, r"params\['w'\] is complex64: only real"),
    "problem": (dict(params=optax.sgd(0.1)), TypeError, "params is an optax transformation"),
    "model state": (dict(model_state={"key": jax.random.key(0)}), TypeError,
                    r"model_state\['key'\] is key.*: it has no bytes"),
    "eager": (dict(worker=sim.LocalSteps(optax.sgd(0.1), 2, eager=0.5)), ValueError,
              "eager= is for sim.simulate and sim.sweep"),
    "nan": (dict(params=NOT_FINITE), ValueError, r"params\['b'\] is not finite"),
}  # fmt: skip


@pytest.fixture
def no_ray(monkeypatch):
    def refuse(*_):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(cluster, "connected", refuse)


@pytest.mark.parametrize(("given", "error", "words"), BAD.values(), ids=BAD)
def test_what_cannot_be_used_is_named_before_anything_starts(no_ray, given, error, words):
    with pytest.raises(error, match=words):
        calls.train(**{**GOOD, **given})


@pytest.mark.parametrize("protocol", clients.OF_A_USER, ids=repr)
def test_a_protocol_of_a_user_is_no_error(no_ray, protocol):
    with pytest.raises(AssertionError, match="Ray was started"):
        calls.train(**{**GOOD, "protocol": protocol})


def test_half_precision_params_are_no_error(no_ray):
    with pytest.raises(AssertionError, match="Ray was started"):
        calls.train(**{**GOOD, "params": {"w": jnp.ones(3, jnp.bfloat16)}})


@contextlib.contextmanager
def listening(answer):
    """The address of something that is no Ray: says this, or nothing, to everybody."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def test_an_address_of_nothing_is_answered_soon():
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = f"127.0.0.1:{server.getsockname()[1]}"
    started = time.monotonic()
    with pytest.raises(ConnectionError, match=f"No Ray cluster answers at {free} .*ray start"):
        calls.train(**GOOD, address=free)
    with pytest.raises(ValueError, match=r"address must be 'host:port' .* got 'nowhere'"):
        calls.train(**GOOD, address="nowhere")
    assert time.monotonic() - started < 20


SETTINGS = b"\0\0\0\4\0\0\0\0\0"


def headers(content, end=True):
    return SETTINGS + bytes([0, 0, len(content), 1, 4 | end, 0, 0, 0, 1]) + content


OF_GRPC = b"\x88@\x0ccontent-type\x10application/grpc"
NOT_RAY = {
    "HTTP/1": b"HTTP/1.1 400 Bad Request\r\nServer: any\r\n\r\n",
    "HTTP/2": headers(b"\x8d"),
    "a page": headers(b"\x88", end=False) + b"\0\0\6\0\1\0\0\0\1<html>",
    "gRPC": headers(OF_GRPC + b"@\x0bgrpc-status\x0212"),
    "reset": SETTINGS + b"\0\0\4\3\0\0\0\0\1\0\0\0\7",
    "goes away": SETTINGS + b"\0\0\x08\7\0\0\0\0\0\0\0\0\0\0\0\0\0",
    "settings": SETTINGS,
    "nothing": b"",
}


@pytest.mark.parametrize("answer", NOT_RAY.values(), ids=NOT_RAY)
def test_what_is_no_ray_is_told_at_once(answer):
    with (
        listening(answer) as address,
        pytest.raises(ConnectionError, match=f"What answers at {address} is no Ray cluster"),
    ):
        calls.train(**GOOD, address=address)


def test_who_says_nothing_is_waited_for_a_while(monkeypatch):
    monkeypatch.setattr(cluster, "_TO_ANSWER", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(
            ConnectionError, match=f"No Ray cluster answers at {address} .timed out"
        ):
            calls.train(**GOOD, address=address)


def test_a_head_that_answers_or_asks_for_a_token_is_ray():
    message = headers(OF_GRPC, end=False) + b"\0\0\5\0\0\0\0\0\1" + bytes(5)
    for answer in (message, headers(OF_GRPC + b"\x00\x0bgrpc-status\x0216")):
        with listening(answer) as address:
            cluster.check_answers(address)
