"""Sessions of TensorRT on stand-ins that are strict about its rules; the real ones are in test_gpu.py."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from stand_in import Cuda, TensorRT
from tiny import TINY_BIAS, TINY_WEIGHT, noise, tiny_graph, tiny_spec, tiny_variant, write_tiny_bundle

import edgetl
from edgetl import gpu
from edgetl.bundle import write_manifest
from edgetl.cli.main import run
from edgetl.compile import PlanSettings, product_named
from edgetl.errors import EngineError, InputError, MissingExtraError
from edgetl.runtime.cuda import Buffer, Stream
from edgetl.runtime.trt import TrtSession

PRODUCT = product_named("tensorrt")
PLAN = b"1-8|" + tiny_graph()


def pictures(count, seed=0):
    return np.stack([noise(16, 16, seed=seed + i) for i in range(count)])


def expected(batch):
    return batch.reshape(len(batch), -1, 3).mean(axis=1) @ TINY_WEIGHT.T + TINY_BIAS


def installed(monkeypatch, cuda, trt):
    def require(module, extra):
        found = {"cuda.bindings.runtime": cuda, "tensorrt": trt}.get(module)
        if found is None:
            raise MissingExtraError(f"{module} is not installed, and this step needs it: pip install 'edgetl[{extra}]'")
        return found

    monkeypatch.setattr("edgetl.gpu.require", require)
    monkeypatch.setattr("edgetl.compile.api.require", require)
    monkeypatch.setattr("edgetl.host.has_nvidia_device", lambda: True)
    forgotten()


def forgotten():
    gpu.current_gpu.cache_clear()
    gpu.cuda.cache_clear()


@pytest.fixture(params=["own memory", "shared memory"])
def cuda(request, monkeypatch):
    yield Cuda(integrated=request.param == "shared memory")
    forgotten()


@pytest.fixture
def trt(cuda, monkeypatch):
    found = TensorRT(cuda)
    installed(monkeypatch, cuda, found)
    return found


def test_answers_of_every_batch_size_in_any_order_and_nothing_leaks(cuda, trt):
    with TrtSession(PLAN, tiny_spec(), PRODUCT) as session:
        assert session.max_batch == 8
        for count in (1, 3, 1, 8, 2, 7, 5, 1, 3, 5, 8):
            batch = pictures(count, seed=count)
            answer = session.infer(batch)
            np.testing.assert_allclose(answer["logits"], expected(batch), rtol=1e-4)
            assert answer["embedding"].shape == (count, 3)
    assert cuda.leaked == (0, 0, 0, 0)
    assert (cuda.copies == 0) is cuda.integrated


def test_an_inference_looks_up_no_module_and_reads_no_file(cuda, trt, monkeypatch):
    with TrtSession(PLAN, tiny_spec(), PRODUCT) as session:
        session.infer(pictures(1))
        monkeypatch.setattr("edgetl.gpu.require", None)
        monkeypatch.setattr("edgetl.gpu.l4t_release", None)
        answer = session.infer(pictures(1))  # whoever asks for either is told that None cannot be called
        np.testing.assert_allclose(answer["logits"], expected(pictures(1)), rtol=1e-4)


def test_a_size_is_recorded_once_and_then_launched(cuda, trt):
    with TrtSession(PLAN, tiny_spec(), PRODUCT) as session:
        for _ in range(5):
            session.infer(pictures(1))
        assert (cuda.launches, trt.contexts) == (5, 2)  # the shared context, and this size's own
        for count in range(1, 9):
            session.infer(pictures(count))
        assert trt.contexts == 5  # four sizes are recorded, the others share one context
        assert session.eager_because == ""


def test_where_recording_is_impossible_the_answers_are_the_same(cuda, trt):
    cuda.capturable = False
    with TrtSession(PLAN, tiny_spec(), PRODUCT) as session:
        for count in (1, 2, 1):
            np.testing.assert_allclose(session.infer(pictures(count))["logits"], expected(pictures(count)), rtol=1e-4)
        assert "cudaErrorStreamCaptureUnsupported" in session.eager_because
        assert cuda.launches == 0
    assert cuda.leaked == (0, 0, 0, 0)


def test_a_plan_of_one_size_is_filled_up(cuda, trt):
    with TrtSession(b"4-4|" + tiny_graph(), tiny_spec(), PRODUCT) as session:
        answer = session.infer(pictures(3))
        np.testing.assert_allclose(answer["logits"], expected(pictures(3)), rtol=1e-4)


def test_threads_take_turns(cuda, trt):
    batches = [pictures(1 + n % 4, seed=n) for n in range(40)]
    answers = [None] * len(batches)
    with TrtSession(PLAN, tiny_spec(), PRODUCT) as session:

        def work(start):
            for n in range(start, len(batches), 4):
                answers[n] = session.infer(batches[n])["logits"]

        threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for batch, answer in zip(batches, answers, strict=True):
        np.testing.assert_allclose(answer, expected(batch), rtol=1e-4)


def test_an_answer_is_the_callers_own(cuda, trt):
    with TrtSession(PLAN, tiny_spec(), PRODUCT) as session:
        first = session.infer(pictures(1))["logits"]
        kept = first.copy()
        session.infer(pictures(1, seed=9))
    np.testing.assert_array_equal(first, kept)


def test_a_plan_that_is_refused_quotes_the_logger_and_leaves_nothing(cuda, trt):
    trt.refuse = True
    with pytest.raises(
        EngineError, match=r"^parts: tensorrt refuses this plan \(.*Magic tag does not match\)\); build"
    ):
        TrtSession(PLAN, tiny_spec(), PRODUCT, name="parts")
    assert cuda.leaked == (0, 0, 0, 0)


def test_a_failing_run_quotes_the_logger(cuda, trt):
    with TrtSession(PLAN, tiny_spec(), PRODUCT) as session:
        trt.fail_runs = True
        with pytest.raises(EngineError, match=r"^TensorRT failed \(.*no luck\)\)$"):
            session.infer(pictures(2))


def test_too_little_memory_is_told_and_leaves_nothing(cuda, trt):
    cuda.memory_left = 100
    with pytest.raises(EngineError, match=r"^CUDA: cudaErrorMemoryAllocation"):
        TrtSession(PLAN, tiny_spec(), PRODUCT)
    assert cuda.leaked == (0, 0, 0, 0)


def test_inputs_that_do_not_fit_and_a_closed_session(cuda, trt):
    session = TrtSession(PLAN, tiny_spec(), PRODUCT)
    with pytest.raises(EngineError, match=r"^batch of 9 pictures: it must be 1 to 8$"):
        session.infer(pictures(9))
    assert session.layers()[0].kind == "CaskConvolution"
    session.close()
    session.close()
    with pytest.raises(EngineError, match="this session is closed"):
        session.infer(pictures(1))
    with pytest.raises(EngineError, match="this session is closed"):
        session.layers()


def test_a_plan_for_other_pictures(cuda, trt):
    with pytest.raises(EngineError, match=r"takes \(N, \*\(16, 16, 3\)\), the spec says \(N, \*\(8, 8, 3\)\)"):
        TrtSession(PLAN, tiny_spec(size=8), PRODUCT)
    assert cuda.leaked == (0, 0, 0, 0)


def test_a_buffer_holds_both_sides(cuda, trt):
    with Stream() as stream:
        buffer = Buffer((4, 3), np.float32)
        buffer.host[:] = np.arange(12).reshape(4, 3)
        buffer.upload(2, stream)
        there = np.frombuffer(cuda.memory(buffer.device), np.float32)
        assert list(there[:6]) == list(range(6))
        assert buffer.shared is cuda.integrated
        assert (there[6] == 0) is not cuda.integrated  # rows that were not sent
        buffer.close()
        buffer.close()
    assert cuda.leaked == (0, 0, 0, 0)


# --- edgetl.load


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "parts.edgetl"
    root.mkdir()
    names = ("fp32", "fp16", "int8-tensorrt", "int8-x86")
    graphs = {name: tiny_graph(bias=TINY_BIAS + np.float32(number / 1000)) for number, name in enumerate(names)}
    variants = [tiny_variant(root, name, graph) for name, graph in graphs.items()]
    write_manifest(root, tiny_spec(), variants, provenance={}, proof={})
    return root


def test_the_first_load_times_both_and_the_second_remembers(cuda, trt, bundle):
    with edgetl.load(bundle, engine="tensorrt") as classify:
        chosen = classify.variant
        assert chosen in ("fp16", "int8-tensorrt")
        assert classify.reason.startswith("the fastest here (")
        assert "built plan" in classify.reason
        assert classify(noise(16, 16)).label == edgetl.load(bundle, engine="cpu")(noise(16, 16)).label
    assert trt.builds == 2
    launched = cuda.launches
    assert launched >= 2 * 200
    with edgetl.load(bundle, engine="tensorrt") as classify:
        assert (classify.variant, trt.builds, cuda.launches) == (chosen, 2, launched)
        assert "cached plan" in classify.reason
    assert cuda.leaked == (0, 0, 0, 0)


def test_what_lost_its_accuracy_does_not_race(cuda, trt, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "cache"))
    root = write_tiny_bundle(
        tmp_path / "b.edgetl", ("fp32", "int8-tensorrt"), recommended=False, reason="loses 9 points"
    )
    with pytest.raises(EngineError, match=r"has no fp16 or int8-tensorrt that kept its accuracy"):
        edgetl.load(root, engine="tensorrt")
    with edgetl.load(root, engine="tensorrt", variant="int8-tensorrt") as classify:
        assert classify.reason == "the only graph to choose from; built plan"


def test_auto_takes_tensorrt_and_says_why(cuda, trt, bundle):
    with edgetl.load(bundle) as classify:
        assert classify.engine == "tensorrt"
    with edgetl.load(bundle, variant="int8-x86") as classify:
        assert (classify.engine, classify.variant) == ("cpu", "int8-x86")


def test_auto_falls_to_the_cpu_with_every_reason_and_by_name_nothing_falls(cuda, monkeypatch, bundle):
    installed(monkeypatch, cuda, None)
    with edgetl.load(bundle) as classify:
        assert classify.engine == "cpu"
        for reason in ("not tensorrt: tensorrt is not installed", "not tensorrt-rtx: ", "not cuda: the installed onnx"):
            assert reason in classify.reason
    with pytest.raises(MissingExtraError, match=r"pip install 'edgetl\[tensorrt\]'"):
        edgetl.load(bundle, engine="tensorrt")


def test_a_library_that_cannot_start_is_no_traceback(cuda, trt, bundle):
    trt.cannot_start = True
    with pytest.raises(EngineError, match=r"tensorrt cannot start \(.*CUDA error 35\)\)"):
        edgetl.load(bundle, engine="tensorrt")
    with edgetl.load(bundle) as classify:
        assert classify.engine == "cpu"


def test_one_graph_that_cannot_be_built_does_not_take_the_other_down(cuda, trt, bundle):
    trt.refuse_graphs = ((bundle / "model.int8-tensorrt.onnx").read_bytes(),)
    with edgetl.load(bundle, engine="tensorrt") as classify:
        assert classify.variant == "fp16"
        assert "not int8-tensorrt: model.int8-tensorrt.onnx: tensorrt cannot build it (" in classify.reason
    assert cuda.leaked == (0, 0, 0, 0)


def test_one_plan_that_does_not_fit_into_memory_neither(cuda, trt, bundle):
    for name in ("fp16", "int8-tensorrt"):
        edgetl.load(bundle, engine="tensorrt", variant=name).close()
    one = 8 * 16 * 16 * 3 * (1 if cuda.integrated else 2)
    cuda.memory_of_all = one * 3 // 2
    with edgetl.load(bundle, engine="tensorrt", build="never") as classify:
        assert "cudaErrorMemoryAllocation" in classify.reason
    assert cuda.leaked == (0, 0, 0, 0)


def test_what_compile_was_told_is_what_load_takes(cuda, trt, bundle):
    assert run(["compile", str(bundle), "--max-batch", "32", "--best-batch", "4", "--workspace", "64"]) == 0
    with edgetl.load(bundle, engine="tensorrt", build="never") as classify:
        assert "cached plan" in classify.reason
        assert len(classify.batch([noise(16, 16)] * 33)) == 33
    assert trt.builds == 2
    assert run(["compile", str(bundle), "--max-batch", "2"]) == 0
    with edgetl.load(bundle, engine="tensorrt", build="never") as classify:
        assert trt.builds == 4
    with pytest.raises(EngineError, match="leave the settings' sms empty"):
        edgetl.load(bundle, settings=PlanSettings(sms=(86,)))


def test_one_plan_alone_is_enough(cuda, trt, bundle, tmp_path):
    assert run(["compile", str(bundle), "--variant", "fp16"]) == 0
    with edgetl.load(bundle, engine="tensorrt", build="never") as classify:
        assert classify.variant == "fp16"
        assert "not int8-tensorrt: " in classify.reason
    assert run(["compile", str(bundle), "--variant", "fp16", "--out", str(tmp_path / "plans")]) == 0
    with edgetl.load(bundle, engine="tensorrt", build="never", plans=tmp_path / "plans") as classify:
        assert "carried plan" in classify.reason


def test_carried_plans_need_no_cache(cuda, trt, bundle, tmp_path, monkeypatch):
    assert run(["compile", str(bundle), "--out", str(tmp_path / "plans")]) == 0
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("EDGETL_CACHE", str(tmp_path / "open"))
    with edgetl.load(bundle, engine="tensorrt", build="never", plans=tmp_path / "plans") as classify:
        assert "the fastest here" in classify.reason
        assert "no plan is kept: " in classify.reason
    with edgetl.load(bundle, engine="tensorrt") as classify:  # built, used, and not kept
        assert "built plan" in classify.reason
    assert run(["compile", str(bundle)]) == 2


def test_a_full_disk_does_not_cost_the_plan_that_was_built(cuda, trt, bundle, monkeypatch):
    def full(path, data):
        raise InputError(f"{path}: cannot be written (No space left on device)")

    monkeypatch.setattr("edgetl.compile.store.write_bytes", full)
    with edgetl.load(bundle, engine="tensorrt") as classify:
        assert "not kept: " in classify.reason
    assert cuda.leaked == (0, 0, 0, 0)


def test_a_damaged_note_is_raced_again(cuda, trt, bundle, tmp_path):
    edgetl.load(bundle, engine="tensorrt").close()
    (note,) = (tmp_path / "cache").glob("choice.*.note")
    note.write_text('{"format_version": 1, "chosen": "fp16"}')
    with edgetl.load(bundle, engine="tensorrt") as classify:
        assert "the fastest here" in classify.reason


def test_timings_that_tensorrt_refuses_are_forgotten(cuda, trt, bundle):
    edgetl.load(bundle, engine="tensorrt", variant="fp16").close()
    trt.stale_timings = True
    edgetl.load(bundle, engine="tensorrt", variant="int8-tensorrt").close()
    assert trt.builds == 2


def test_the_race_is_run_at_the_batch_that_compile_was_told_and_only_once(cuda, trt, bundle, monkeypatch):
    from edgetl.runtime import planned

    batches, race = [], planned.race

    def counted(sessions, *, batch):
        batches.append(batch)
        return race(sessions, batch=batch)

    monkeypatch.setattr(planned, "race", counted)
    assert run(["compile", str(bundle), "--max-batch", "32", "--best-batch", "16"]) == 0
    edgetl.load(bundle, engine="tensorrt", build="never").close()
    assert batches == [16]


def test_where_the_remembered_plan_fails_the_other_is_taken(cuda, trt, bundle):
    with edgetl.load(bundle, engine="tensorrt") as classify:
        chosen = classify.variant
    trt.refuse_plans = ((bundle / f"model.{chosen}.onnx").read_bytes(),)
    with edgetl.load(bundle, engine="tensorrt") as classify:
        assert classify.variant != chosen
        assert f"not {chosen}: " in classify.reason
    assert cuda.leaked == (0, 0, 0, 0)


def test_a_plan_is_built_as_its_key_says(cuda, trt, bundle, tmp_path):
    """Another process may change what was asked for last while this one waits."""
    from edgetl.compile import store

    assert run(["compile", str(bundle), "--variant", "fp16", "--max-batch", "32"]) == 0
    for path in (tmp_path / "cache").glob("*.plan"):
        path.unlink()
    building = store.PlanStore.building

    def meanwhile(self, key):
        for note in (tmp_path / "cache").glob("latest.*.note"):
            note.unlink()
        return building(self, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.PlanStore, "building", meanwhile)
        with edgetl.load(bundle, engine="tensorrt", variant="fp16") as classify:
            assert classify.session.max_batch == 32


def test_another_device_of_the_caller_stays_its_own(cuda, trt):
    cuda.current = 1
    with TrtSession(PLAN, tiny_spec(), PRODUCT) as session:
        for _ in range(2):
            session.infer(pictures(1))
        assert cuda.current == 1


def test_ctrl_c_ends_a_build(cuda, trt, bundle, monkeypatch):
    """What arrives in this thread while another one builds: here, raised by the progress that it tells."""
    monkeypatch.setattr("edgetl.compile.builder._HEARTBEAT_S", 0.01)
    trt.build_seconds = 0.2

    def interrupted(*told):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edgetl.load(bundle, engine="tensorrt", on_progress=interrupted)
    assert not list((bundle.parent / "cache").glob("*.plan"))


def test_nothing_is_built_where_that_is_forbidden(cuda, trt, bundle):
    with pytest.raises(EngineError, match=r"has no plan of (fp16|int8-tensorrt) here; edgetl compile makes one"):
        edgetl.load(bundle, engine="tensorrt", build="never")
    assert trt.builds == 0
    with pytest.raises(EngineError, match="no such folder of plans"):
        edgetl.load(bundle, engine="tensorrt", plans="nowhere")


def test_a_build_does_not_look_dead(cuda, trt, bundle, monkeypatch, caplog):
    monkeypatch.setattr("edgetl.compile.builder._HEARTBEAT_S", 0.01)
    trt.build_seconds = 0.1
    with edgetl.load(bundle, engine="tensorrt", variant="fp16"):
        pass
    assert [record.name for record in caplog.records] == ["edgetl"]
    assert "building model.fp16.onnx, 0 s so far" in caplog.text


def test_settings_are_part_of_the_key(cuda, trt, bundle):
    for settings, builds in ((None, 1), (PlanSettings(max_batch=4), 2), (None, 2)):
        with edgetl.load(bundle, engine="tensorrt", variant="fp16", settings=settings) as classify:
            assert classify.batch([noise(16, 16)] * 9)
        assert trt.builds == builds


def test_compile_for_this_machine_times_both_and_load_takes_its_choice(cuda, trt, bundle, capsys):
    assert run(["compile", str(bundle), "--max-batch", "4", "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(plan["variant"], plan["origin"]) for plan in report["plans"]] == [
        ("fp16", "built"), ("int8-tensorrt", "built"),
    ]  # fmt: skip
    assert all(Path(plan["path"]).exists() for plan in report["plans"])
    assert (report["engine"], trt.builds) == ("tensorrt", 2)
    with edgetl.load(bundle, engine="tensorrt", settings=PlanSettings(max_batch=4), build="never") as classify:
        assert classify.variant == report["chosen"]["variant"]


def test_compile_refuses_what_makes_no_sense(cuda, trt, bundle, capsys):
    for arguments, message in (
        (["--sm", "86"], "--sm builds for other machines: give --out"),
        (["--sm", "86", "--out", str(bundle.parent / "p")], "tensorrt builds for this machine's GPU alone"),
        (["--variant", "int8-x86"], 'variant "int8-x86" is made for x86, not for TensorRT'),
        (["--variant", "int4"], 'has no variant "int4"'),
        (["--sm", "ampere"], "must be compute capabilities with commas between, like 86,89"),
        (["--dla", "0"], "a DLA takes one batch size only"),
        (["--dla", "0", "--max-batch", "1"], "DLA 0: this machine has 0 of them"),
    ):
        assert run(["compile", str(bundle), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert trt.builds == 0
    assert not (bundle.parent / "p").exists()
