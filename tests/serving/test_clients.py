"""A controller behind a server steers as a local one does, and a run outlives it."""

import datetime
import logging
import random
import socket
import time
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
import trustme
from helpers import data, fit, learning_rate, model, rate
from servers import (
    CLIENTS,
    GrpcImpostor,
    Impostor,
    closed_port,
    connect,
    drip,
    drip_body,
    export,
    observations,
)
from test_loopback import config_of

from keras_learned_lr import (
    AnchoredScaleFactor,
    GrpcController,
    RestController,
    ServingError,
)
from keras_learned_lr.benchmark.loopback import LoopbackServer
from keras_learned_lr.control.controller import RemoteController
from keras_learned_lr.control.schedules import EverySteps
from keras_learned_lr.control_loop import ControlLoop

both = pytest.mark.parametrize("client", CLIENTS)


@both
def test_a_model_may_have_any_name(client, tmp_path):
    export(tmp_path)
    with LoopbackServer(tmp_path, model_name="größe 1") as server:
        remote = connect(client, server, "größe 1")
        assert np.isfinite(remote.act(tf.zeros([1, 22]), []).action)


@both
@pytest.mark.parametrize("kind", ["mlp", "recurrent"])
def test_answers_as_the_original_does(client, kind, server, base):
    controller, remote = base[1][kind], connect(client, server, kind)
    assert isinstance(remote, RemoteController)
    assert remote.observation_spec == controller.observation_spec
    assert remote.action_form == controller.action_form
    state, expected_state = remote.initial_state(3), controller.initial_state(3)
    for turn in range(3):
        seen = tf.constant(observations(controller, 3, seed=turn))
        output = remote.act(seen, state)
        expected = controller.act(seen, expected_state)
        state, expected_state = output.state, expected.state
        np.testing.assert_allclose(output.action, expected.action, rtol=1e-5)
        assert len(state) == len(expected_state)
        for got, wanted in zip(state, expected_state, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@both
@pytest.mark.parametrize("kind", ["mlp", "recurrent"])
def test_steers_as_the_original_does(client, kind, server, base):
    runs = []
    for controller in (base[1][kind], connect(client, server, kind)):
        callback = rate(controller)
        trainee = model()
        fit(trainee, [callback])
        runs.append((callback.decisions, trainee.get_weights()))
    (local, weights), (remote, remote_weights) = runs
    assert len(set(local["learning_rate"].tolist())) > 1
    for name in ("step", "learning_rate", "factor", "action", "loss", "held"):
        np.testing.assert_allclose(remote[name], local[name], rtol=1e-5)
    for a, b in zip(weights, remote_weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_an_envelope_moves_between_the_answers(tmp_path):
    form = AnchoredScaleFactor(schedule=EverySteps(4))
    controller = export(tmp_path, form=form)
    rates = []
    with LoopbackServer(tmp_path) as server:
        for given in (controller, connect("grpc", server)):
            callback = rate(given)
            watch = RateAtEveryStep()
            fit(model(), [callback, watch])
            rates.append(watch.rates)
    assert len(set(rates[0])) > 8  # Of three decisions.
    np.testing.assert_allclose(rates[1], rates[0], rtol=1e-5)


class RateAtEveryStep(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.rates = []

    def on_train_batch_end(self, batch, logs=None):
        self.rates.append(learning_rate(self.model))


def test_a_custom_loop_takes_the_three_steps(server, base):
    """With either kind of controller, to the same end."""
    x, y = data()
    weights = []
    for controller in (base[1]["mlp"], connect("rest", server, "mlp")):
        trainee = model()
        loop = ControlLoop(trainee, controller, controller.action_form)
        loop.start(horizon=12)
        rates = []
        for step in range(12):
            if step % 3 == 0:
                look = loop.observe()
                assert look.observation.shape == (22,)
                rates.append(loop.set(look, loop.ask(look)).learning_rate)
            loop.probe.expect_step()
            at = slice(16 * (step % 6), 16 * (step % 6 + 1))
            trainee.train_function(iter([(x[at], y[at])]))
        loop.stop()
        assert len(set(rates)) > 1
        weights.append(np.concatenate([w.ravel() for w in trainee.get_weights()]))
    np.testing.assert_allclose(*weights, rtol=1e-4, atol=1e-6)


def test_inside_a_graph_it_says_what_to_do(server):
    remote = connect("grpc", server, "mlp")
    with pytest.raises(RuntimeError, match=r"`ControlLoop.observe`, `ask` and `set`"):
        tf.function(lambda o: remote.act(o, []).action, autograph=False)(
            tf.zeros([1, 22])
        )


class TestVersions:
    @pytest.fixture(scope="class")
    def two(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("two")
        controllers = [export(folder, seed=seed) for seed in (1, 2)]
        with LoopbackServer(config=config_of(folder)) as server:
            yield server, controllers

    @both
    @pytest.mark.parametrize(
        ("asked", "version"),
        [
            ({}, 2),
            ({"version": 1}, 1),
            ({"label": "stable"}, 1),
            ({"label": "canary"}, 2),
        ],
    )
    def test_the_one_asked_for_decides(self, client, asked, version, two):
        server, controllers = two
        remote = connect(client, server, **asked)
        assert remote.version == version
        seen = tf.constant(observations(controllers[0]))
        expected = controllers[version - 1].act(seen, []).action
        np.testing.assert_allclose(remote.act(seen, []).action, expected, rtol=1e-5)

    @pytest.mark.parametrize("place", ["versions/1", "labels/stable"])
    def test_may_be_in_the_url(self, place, two):
        url = f"{two[0].url}/v1/models/learned_lr/{place}"
        assert RestController(url).version == 1

    @both
    @pytest.mark.parametrize(
        ("asked", "match"),
        [
            ({"version": 7}, r"Specific\(learned_lr, 7\)"),
            ({"label": "best"}, "Unrecognized servable version label: best"),
            ({"model": "half"}, r"Latest\(half\).*Check the"),
        ],
    )
    def test_that_is_not_there(self, client, asked, match, two):
        with pytest.raises(ServingError, match=match):
            connect(client, two[0], **asked)

    @both
    def test_a_run_stays_with_its_own_and_the_next_takes_the_latest(
        self, client, tmp_path
    ):
        controllers = [export(tmp_path, seed=1)]
        config = (
            f"model_config_list {{ config {{ base_path: '{tmp_path}' "
            "name: 'learned_lr' model_version_policy { all {} } } }"
        )
        with LoopbackServer(config=config) as server:
            remote = connect(client, server)
            controllers.append(export(tmp_path, seed=2))
            server.models.poll()
            seen = tf.constant(observations(controllers[0]))
            for version in (1, 2):
                assert remote.version == version
                expected = controllers[version - 1].act(seen, []).action
                np.testing.assert_allclose(
                    remote.act(seen, []).action, expected, rtol=1e-5
                )
                remote.connect()

    @both
    def test_one_that_is_unloaded_gives_way_to_its_successor(self, client, tmp_path):
        export(tmp_path, seed=1)
        with LoopbackServer(tmp_path) as server:
            remote, pinned = connect(client, server), connect(client, server, version=1)
            new = export(tmp_path, seed=2)
            server.models.poll()
            seen = tf.constant(observations(new))
            np.testing.assert_allclose(
                remote.act(seen, []).action, new.act(seen, []).action, rtol=1e-5
            )
            assert remote.version == 2
            with pytest.raises(ServingError, match=r"Specific\(learned_lr, 1\)"):
                pinned.act(seen, [])

    @both
    def test_but_not_to_one_that_sees_otherwise(self, client, tmp_path):
        controller = export(tmp_path)
        with LoopbackServer(tmp_path) as server:
            remote = connect(client, server)
            callback = rate(remote)
            swap = keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda batch, logs: (
                    batch == 3 and self.swap(tmp_path, server)
                )
            )
            with pytest.warns(UserWarning, match="version 2 sees or acts otherwise"):
                fit(model(), [callback, swap], epochs=2)
            assert callback.decisions["held"].tolist() == [False, False, True, True]
            # The next run begins with the new one.
            fit(model(), [callback], epochs=1)
            names = list(callback.decisions["observation"])
            assert names == ["log_level", "progress"] != controller.observation_spec
            assert not callback.decisions["held"].any()

    def swap(self, folder, server):
        export(folder, names=["log_level", "progress"])
        server.models.poll()
        return True


class TestAway:
    """The server goes and comes back while a model trains."""

    def run(self, client, folder, away, epochs=4, **options):
        """Fits; between the steps of `away` the server is down."""
        server = LoopbackServer(folder)
        ports = [int(place.rsplit(":", 1)[1]) for place in (server.target, server.url)]
        running = {"server": server}

        def watch(batch, logs):
            step = len(steps)
            steps.append(logs["learning_rate"])
            if step == away[0]:
                running.pop("server").close()
            if step == away[1]:
                running["server"] = LoopbackServer(
                    folder, port=ports[0], rest_port=ports[1]
                )
                # gRPC looks for it again only now and then.
                time.sleep(1.1)

        def timed(observation, state):
            begun = time.monotonic()
            try:
                return act(observation, state)
            finally:
                waited.append(time.monotonic() - begun)

        steps, waited = [], []
        remote = connect(client, server, **options)
        act, remote.act = remote.act, timed
        callback = rate(remote)
        trainee = model()
        watcher = keras.callbacks.LambdaCallback(on_train_batch_end=watch)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                fit(trainee, [callback, watcher], epochs=epochs)
        finally:
            if "server" in running:
                running["server"].close()
        told = [
            str(w.message) for w in caught if "LearnedLearningRate" in str(w.message)
        ]
        return callback, trainee, told, waited

    @both
    def test_the_rate_is_held_with_one_warning_until_it_is_back(self, client, tmp_path):
        export(tmp_path)
        callback, trainee, told, _ = self.run(client, tmp_path, away=(4, 16))
        decisions = callback.decisions
        assert decisions["step"].tolist() == list(range(0, 24, 3))
        gone = (decisions["step"] > 4) & (decisions["step"] <= 16)
        assert decisions["held"].tolist() == gone.tolist()
        assert np.isnan(decisions["action"][gone]).all()
        held = decisions["learning_rate"][gone]
        assert set(held) == {decisions["learning_rate"][1]}
        assert len(set(decisions["learning_rate"][~gone])) > 2
        assert len(told) == 1
        assert (
            "did not answer" in told[0]
            and "cannot be reached" in told[0]
            or ("UNAVAILABLE" in told[0])
        )
        assert all(np.isfinite(w).all() for w in trainee.get_weights())

    @both
    def test_a_run_is_not_kept_waiting_longer_than_the_timeout(self, client, tmp_path):
        export(tmp_path)
        *_, waited = self.run(client, tmp_path, away=(4, 100), epochs=8, timeout=0.4)
        # Of the decisions without an answer only the first tries again.
        first, *later = waited[2:]
        assert 0.05 < first < 0.6
        assert len(later) == 13
        assert np.median(later) < 0.05

    @both
    def test_before_the_first_step_it_is_an_error(self, client, tmp_path):
        export(tmp_path)
        with LoopbackServer(tmp_path) as server:
            callback = rate(connect(client, server, connect_timeout=0.5))
        trainee = model()
        before = trainee.get_weights()
        with pytest.raises(ServingError):
            fit(trainee, [callback])
        assert all(map(np.array_equal, before, trainee.get_weights()))
        assert "train_step" not in trainee.__dict__

    @both
    def test_between_connecting_and_the_first_step_it_is_held(self, client, tmp_path):
        export(tmp_path)
        server = LoopbackServer(tmp_path)
        callback = rate(connect(client, server, timeout=0.3))
        gone = keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs: server.close()
        )
        trainee = model()
        with pytest.warns(UserWarning, match="The controller did not answer"):
            fit(trainee, [callback, gone])
        assert callback.decisions["step"].tolist() == [0, 3, 6, 9]
        assert callback.decisions["held"].all()
        np.testing.assert_allclose(callback.decisions["learning_rate"], 0.1)


class TestRetries:
    def test_what_can_be_retried_is(self, server, base):
        with Impostor(server) as impostor:
            remote = RestController(impostor.url + "/v1/models/mlp")
            left = [429, 503]
            impostor.requests.clear()
            impostor.answers["predict"] = lambda handler: (
                handler.reply('{"error": "busy"}', left.pop())
                if left
                else handler.reply('{"outputs": {"action": [0.5], "factor": [1]}}')
            )
            output = remote.act(tf.zeros([1, 22]), [])
            assert output.action.numpy().tolist() == [0.5]
            assert len(impostor.requests) == 3

    @pytest.mark.parametrize("status", [400, 401, 404, 500])
    def test_and_what_cannot_is_not(self, status, server):
        with Impostor(server) as impostor:
            remote = RestController(impostor.url + "/v1/models/mlp/versions/1")
            impostor.requests.clear()
            impostor.answers["predict"] = lambda h: h.reply('{"error": "no"}', status)
            with pytest.raises(ServingError, match=f"HTTP {status}: 'no'"):
                remote.act(tf.zeros([1, 22]), [])
            assert len(impostor.requests) == 1

    @pytest.mark.parametrize("loris", [drip, drip_body])
    def test_no_answer_takes_longer_than_the_timeout(self, loris, server):
        with Impostor(server) as impostor:
            remote = RestController(impostor.url + "/v1/models/mlp", timeout=0.3)
            impostor.answers["predict"] = loris
            begun = time.monotonic()
            with pytest.raises(ServingError, match="did not answer within"):
                remote.act(tf.zeros([1, 22]), [])
            assert time.monotonic() - begun < 1.5

    def test_nor_does_looking_up_the_name(self, server, monkeypatch):
        remote = RestController(f"{server.url}/v1/models/mlp", timeout=0.3)
        remote._http._pool.close()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(3))
        begun = time.monotonic()
        with pytest.raises(ServingError, match="did not answer within"):
            remote.act(tf.zeros([1, 22]), [])
        assert time.monotonic() - begun < 1.5

    def test_nor_over_grpc(self, server):
        with GrpcImpostor(server) as impostor:
            remote = GrpcController(impostor.target, model="mlp", timeout=0.3)

            def sleep(signature, response, context):
                time.sleep(1.0)
                return response

            impostor.change = sleep
            begun = time.monotonic()
            with pytest.raises(ServingError, match="DEADLINE_EXCEEDED"):
                remote.act(tf.zeros([1, 22]), [])
            assert time.monotonic() - begun < 0.9


LONG_AGO = datetime.datetime(2020, 1, 1)
SECRET = "Bearer s3cr3t-t0ken"


class TestSecurity:
    @pytest.fixture(scope="class")
    def authority(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("certificates")
        authority = trustme.CA()
        authority.cert_pem.write_to_path(folder / "ca.pem")
        for name, options in {
            "good": {},
            "expired": {"not_after": LONG_AGO},
        }.items():
            issued = authority.issue_cert("127.0.0.1", **options)
            issued.private_key_pem.write_to_path(folder / f"{name}.key")
            chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
            (folder / f"{name}.pem").write_bytes(chain)
        return folder

    def serve(self, base, authority, certificate, **options):
        pair = authority / f"{certificate}.key", authority / f"{certificate}.pem"
        return LoopbackServer(
            base[0] / "mlp", certificate=tuple(map(str, pair)), **options
        )

    def connect(self, client, server, ca_file=None, **options):
        options.setdefault("connect_timeout", 5.0)
        ca_file = None if ca_file is None else str(ca_file)
        if client == "grpc":
            return GrpcController(server.target, tls=True, ca_file=ca_file, **options)
        url = f"{server.url}/v1/models/learned_lr"
        return RestController(url, ca_file=ca_file, **options)

    @both
    def test_speaks_tls_and_carries_a_token(self, client, base, authority, caplog):
        caplog.set_level(logging.DEBUG)
        name = "metadata" if client == "grpc" else "headers"
        with self.serve(base, authority, "good", token=SECRET) as server:
            ca = authority / "ca.pem"
            remote = self.connect(
                client, server, ca, **{name: {"Authorization": SECRET}}
            )
            remote.act(tf.zeros([1, 22]), [])
            assert "s3cr3t" not in repr(remote)
            for options in ({}, {name: {"Authorization": SECRET + "-wrong"}}):
                with pytest.raises(
                    ServingError, match=f"Pass credentials as `{name}`"
                ) as e:
                    self.connect(client, server, ca, **options)
                assert "s3cr3t" not in str(e.value)
        assert caplog.text and "s3cr3t" not in caplog.text

    @both
    @pytest.mark.parametrize(
        ("certificate", "trusted"), [("expired", True), ("good", False)]
    )
    def test_a_bad_certificate_is_an_error_at_once(
        self, client, certificate, trusted, base, authority
    ):
        with self.serve(base, authority, certificate) as server:
            begun = time.monotonic()
            with pytest.raises(ServingError, match="(?i)certificate") as caught:
                self.connect(client, server, authority / "ca.pem" if trusted else None)
            if client == "rest":
                reason = "expired" if trusted else "unable to get local issuer"
                assert reason in str(caught.value)
            assert time.monotonic() - begun < 3

    @both
    @pytest.mark.parametrize("value", ["s3cr3t\nX: y", "s3cr3té", 7])
    def test_a_credential_that_is_no_header_is_not_shown(self, client, value, server):
        name = "metadata" if client == "grpc" else "headers"
        with pytest.raises(ValueError, match="'authorization'.*not shown") as caught:
            connect(client, server, **{name: {"authorization": value}})
        assert "s3cr3t" not in str(caught.value)

    def test_credentials_in_the_url_are_refused_and_not_shown(self):
        with pytest.raises(ValueError, match="Pass `headers`") as caught:
            RestController("http://user:s3cr3t@host:8501/v1/models/learned_lr")
        assert "s3cr3t" not in str(caught.value)

    def test_redirects_are_not_followed(self, server):
        with Impostor(server) as impostor, Impostor(server) as elsewhere:
            impostor.answers["metadata"] = lambda handler: handler.reply(
                "", 307, Location=elsewhere.url + handler.path
            )
            url = impostor.url + "/v1/models/mlp"
            with pytest.raises(ServingError, match=r"redirects \(HTTP 307\)"):
                RestController(url, headers={"Authorization": SECRET})
            assert impostor.requests[0][1]["Authorization"] == SECRET
            assert elsewhere.requests == []

    @both
    def test_no_proxy_is_taken_from_the_environment(self, client, server, monkeypatch):
        proxy = f"http://127.0.0.1:{closed_port()}"
        for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, proxy)
            monkeypatch.setenv(name.upper(), proxy)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        connect(client, server, "mlp")


def test_the_users_random_state_is_left_alone(server):

    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    connect("rest", server, "mlp").act(tf.zeros([1, 22]), [])
    with pytest.raises(ServingError):
        GrpcController(f"127.0.0.1:{closed_port()}", connect_timeout=0.2)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
