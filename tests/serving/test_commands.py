"""`serve-check` and the benchmark of many trainings on one server."""

import json

import pytest
from helpers import every
from servers import closed_port, export
from typer.testing import CliRunner

from keras_learned_lr.benchmark import serving
from keras_learned_lr.benchmark.loopback import LoopbackServer
from keras_learned_lr.benchmark.serving_run import due_steps
from keras_learned_lr.cli import app


def run(*arguments):
    done = CliRunner().invoke(app, [*map(str, arguments)])
    return done.exit_code, done.output


class TestServeCheck:
    @pytest.mark.parametrize("client", ["rest", "grpc"])
    def test_passes_what_is_right(self, client, server):
        url = f"{server.url}/v1/models/recurrent"
        if client == "grpc":
            url = f"grpc://{server.target}/recurrent"
        code, output = run("serve-check", url, "--json")
        assert code == 0
        checks = json.loads(output)
        assert [c["name"] for c in checks] == ["signature and spec", "fit", "latency"]
        assert all(c["passed"] for c in checks)
        spec, fit, latency = (c["found"] for c in checks)
        assert "version 1, 22 features" in spec and "2 recurrent states" in spec
        assert "22 decisions, 0 of them held" in fit
        assert "p50" in latency

    def test_says_what_is_wrong(self, server):
        code, output = run("serve-check", f"{server.url}/v1/models/half")
        assert code == 1
        assert output.startswith("FAILED signature and spec: ")
        assert "Servable not found for request: Latest(half)" in output
        for url in ("grpc://host", f"ftp://127.0.0.1:{closed_port()}/x"):
            code, output = run("serve-check", url)
            assert code == 1
            assert url in output

    def test_passes_on_the_authorization_and_does_not_show_it(
        self, tmp_path, monkeypatch
    ):
        export(tmp_path, form=every(16))
        monkeypatch.setenv("TOKEN_OF_TEST", "Bearer s3cr3t")
        with LoopbackServer(tmp_path, token="Bearer s3cr3t") as server:
            for url in (
                f"{server.url}/v1/models/learned_lr",
                f"grpc://{server.target}/learned_lr",
            ):
                code, output = run("serve-check", url)
                assert code == 1 and "Pass credentials" in output
                arguments = ("--authorization-variable", "TOKEN_OF_TEST")
                code, output = run("serve-check", url, *arguments)
                assert code == 0, output
                assert "s3cr3t" not in output

    def test_fails_a_server_that_dies_in_the_middle(self, tmp_path, monkeypatch):
        export(tmp_path)
        from keras_learned_lr import serve_check

        with LoopbackServer(tmp_path) as server:
            rehearse = serve_check.rehearse

            def die(controller):
                server.close()
                return rehearse(controller)

            monkeypatch.setattr(serve_check, "rehearse", die)
            url = f"grpc://{server.target}/learned_lr"
            (spec, fit) = serve_check.check(url, connect_timeout=1.0)
            assert spec.passed and not fit.passed
            assert "ServingError" in fit.found


@pytest.mark.slow
def test_many_trainings_outlive_a_server_that_is_killed():
    """The benchmark, shorter; processes of their own import TensorFlow."""
    report = serving.run(seconds=10, fits=2, clients=4, decisions=20)
    assert report["runs"] == 6
    assert report["runs_lost"] == 0
    assert report["fits"] >= 2
    assert report["seconds_without_server"] > 0.5
    held = report["fit_decisions_held"] + report["replayed_held"]
    assert held > 0 and report["replayed"] > 10
    for kind in ("local", "grpc", "rest"):
        assert 0 < report[f"{kind}_p50_ms"] <= report[f"{kind}_p99_ms"]


def test_the_benchmark_knows_when_a_decision_is_due():
    assert due_steps(every(3), 10) == [0, 3, 6, 9]
    assert due_steps(every(5), 10) == [0, 5]
