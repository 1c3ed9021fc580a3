"""What the scripts of launch/ call, in what order, and how they end."""

import re
import signal
import time

import pytest

from tests.launch.place import ROOT, Place

SCRIPTS = sorted(path.name for path in ROOT.glob("launch/*.sh"))


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s != "setup.sh"])
def test_help_explains_and_starts_nothing(place, script):
    status, out, _ = place.run(script, "--help")
    assert status == 0
    assert out.startswith("usage: ")
    assert f"launch/{script}" in out
    assert place.called() == []


WRONG = {
    "local": ("local.sh", ("-n", "2"), "nothing to run"),
    "local, no number": ("local.sh", ("-n", "two"), "-n needs a number"),
    "local, no count": ("local.sh", ("--", "train"), "-n PROCESSES is missing"),
    "local, unknown": ("local.sh", ("-p", "2"), "unknown argument -p"),
    "gpu": ("gpu_node.sh", ("--gpus", "all"), "--gpus needs a list"),
    "slurm, nothing": ("slurm.sh", (), "nothing to run"),
    "slurm, no job": ("slurm.sh", ("train", "x.py"), "submit it with sbatch"),
    "tpu": ("tpu_pod.sh", ("--name", "a", "--", "train"), "--name and --zone"),
    "sweep": ("sweep.sh", ("x.py", "--out", "o"), "nothing to sweep"),
    "sweep, no scale": ("sweep.sh", ("x.py", "--scale"), "--scale needs demo"),
    "sweep, no config": ("sweep.sh", ("--over", "seed", "1"), "a CONFIG and --out"),
    "test, unknown": ("test.sh", ("--slow",), "unknown argument --slow"),
    "paper, no data": ("reproduce_paper.sh", (), "no data in data/fineweb_edu"),
    "paper, no value": ("reproduce_paper.sh", ("--data",), "--data needs a value"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_started_is_a_sentence(place, name):
    script, args, says = WRONG[name]
    status, _, said = place.run(script, *args)
    assert status == 2
    assert says in said
    assert said.startswith(f"launch/{script}: ")
    assert place.called() == []


def test_local_starts_processes_that_know_each_other(place):
    status, out, _ = place.run("local.sh", "-n", "3", "-d", "2", "--", "train", "x.py")
    assert status == 0
    assert sorted(place.called()) == [f"rfq train x.py [{i}/3]" for i in range(3)]
    flags = " --xla_force_host_platform_device_count=2"
    said = [f"[{i}] hello from {i}{flags}" for i in range(3)]
    assert sorted(out.splitlines()) == said


@pytest.mark.parametrize(("status", "starts"), [(1, 1), (2, 1), (75, 3), (134, 3)])
def test_local_starts_again_what_a_new_start_can_mend(place, status, starts):
    place.plan(1, f"exit {status}", f"exit {status}")
    ended, _, said = place.run("local.sh", "-n", "2", "--restarts", "2", "--", "train")
    assert ended == (status if starts == 1 else 0)
    assert len(place.called()) == 2 * starts
    assert said.count("process 1 of 2") == min(starts, 2)  # The third start is good.


@pytest.mark.slow  # The ten seconds that the others are given.
def test_local_ends_the_others_in_time_when_one_is_killed(place):
    place.plan(0, "trap '' TERM; while :; do sleep 0.1; done")
    place.plan(1, "kill -9 $$")
    # The loop of process 0 stands for a collective that never ends.
    started = time.monotonic()
    status, _, said = place.run(
        "local.sh", "-n", "2", "--", "train", RFQ_LOST_SECONDS="0"
    )
    assert status == 75
    assert re.search(r"process 1 of 2 on \S+ was ended by signal 9", said)
    assert 9 < time.monotonic() - started < 20


def test_local_passes_sigterm_on_and_does_not_start_again(place):
    for index in range(2):
        place.plan(index, "while :; do sleep 0.1; done")
    process = place.start("local.sh", "-n", "2", "--restarts", "5", "--", "train")
    place.wait_for(2)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert len(place.called()) == 2


def test_a_gpu_node_starts_again_too(place):
    place.plan(0, "exit 75", "exit 139")
    args = ("--gpus", "0,2", "--restarts", "3", "--", "train", "x.py")
    status, _, _ = place.run("gpu_node.sh", *args)
    assert status == 0
    assert len(place.called()) == 3


JOB = {
    "SLURM_JOB_ID": "70003",
    "SLURM_ARRAY_JOB_ID": "70001",
    "SLURM_ARRAY_TASK_ID": "2",
}


def test_a_batch_job_runs_under_srun_and_knows_its_place_in_the_array(place):
    args = ("train", "x.py", "--seed", "{task}", "--out", "runs/a b/{task}")
    status, _, _ = place.run("slurm.sh", *args, **JOB)
    assert status == 0
    assert place.called() == [
        "srun --kill-on-bad-exit=1 .venv/bin/rfq train x.py --seed 2 --out runs/a b/2",
        "rfq train x.py --seed 2 --out runs/a b/2",
    ]


@pytest.mark.parametrize(
    ("end", "env", "requeued"),
    [
        ("exit 75", {}, True),
        ("kill -9 $$", {}, True),
        ("exit 1", {}, False),
        ("exit 2", {}, False),
        ("exit 75", {"JOB_STATE": "CANCELLED"}, False),
        ("exit 75", {"SLURM_RESTART_COUNT": "3", "RFQ_MAX_REQUEUES": "3"}, False),
        ("exit 75", {"SLURM_RESTART_COUNT": "2", "RFQ_MAX_REQUEUES": "3"}, True),
    ],
    ids=["saved", "killed", "diverged", "bad", "cancelled", "too-often", "once-more"],
)
def test_a_batch_job_goes_back_into_the_queue_where_that_helps(
    place, end, env, requeued
):
    place.plan(0, end)
    status, _, _ = place.run("slurm.sh", "train", "x.py", **JOB, **env)
    assert status != 0
    # The task's own number: the array's would requeue all of it.
    assert ("scontrol requeue 70003" in place.called()) == requeued


def test_a_batch_job_waits_for_its_processes_when_it_is_signalled(place):
    place.plan(0, "while :; do sleep 0.1; [ -e saved ] && exit 75; done")
    process = place.start("slurm.sh", "train", "x.py", **JOB)
    place.wait_for(2)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    (place.folder / "saved").touch()
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert place.called()[-1] == "scontrol requeue 70003"


def test_a_tpu_pod_gets_one_command_on_all_hosts(place):
    args = ("--name", "pod", "--zone", "z", "--dir", "my rfq", "--", "train", "a b.py")
    status, _, _ = place.run("tpu_pod.sh", *args)
    assert status == 0
    assert place.called() == [
        "gcloud",
        "<compute><tpus><tpu-vm><ssh><pod><--zone><z><--worker><all><--command>"
        "<cd my\\ rfq && RFQ_LAUNCHER=cloud_tpu JAX_PLATFORMS=tpu "
        ".venv/bin/rfq train a\\ b.py>",
    ]
    status, out, _ = place.run("tpu_pod.sh", "--dry-run", *args)
    assert status == 0
    assert out.startswith("gcloud compute tpus tpu-vm ssh pod")
    assert len(place.called()) == 2


def test_a_sweep_is_every_combination(place):
    place.plan(0, "", "exit 1")
    over = ("--over", "optimizer.learning-rate", "1e-3,3e-3", "--over", "seed", "0,1")
    args = ("x.py", "--out", "o", *over, "--", "--train.num-steps", "9")
    status, out, _ = place.run("sweep.sh", *args)
    assert status == 1
    runs = [(rate, seed) for rate in ("1e-3", "3e-3") for seed in "01"]
    expected = [
        f"rfq train x.py --out o/optimizer.learning-rate={rate},seed={seed} "
        f"--optimizer.learning-rate {rate} --seed {seed} --train.num-steps 9"
        for rate, seed in runs
    ]
    assert place.called() == expected
    assert out.count("diverged") == 4  # No run here says that it is done.
    place.calls.write_text("")
    _, out, _ = place.run("sweep.sh", "--list", *args)
    assert out.splitlines() == expected
    assert place.called() == []


def test_a_family_is_compared_once_or_for_every_combination(place):
    args = ("x.py", "--scale", "demo", "--out", "o")
    compared = "rfq compare x.py --scale demo --out o"
    status, out, _ = place.run("sweep.sh", *args)
    assert status == 0
    assert "diverged" not in out
    assert place.called() == [compared]
    place.calls.write_text("")
    place.plan(0, "", "exit 1")
    over = ("--over", "seed", "0,1", "--", "--train.num-steps", "9")
    status, _, _ = place.run("sweep.sh", *args, *over)
    assert status == 1  # One arm diverged; the other seed is compared all the same.
    assert place.called() == [
        f"{compared}/seed={seed} --seed {seed} --train.num-steps 9" for seed in "01"
    ]


def test_the_paper_is_five_runs_and_two_controls_in_one_command(place):
    (place.folder / "my data").mkdir()
    args = ("--data", "my data", "--tokenizer", "t.model", "--seeds", "0", "1")
    status, _, said = place.run("reproduce_paper.sh", *args)
    assert status == 0
    assert "the tasks are left out; rfq prepare tasks --out data/tasks" in said
    arms = [
        *("residual_adamw", "residual_kl_shampoo", "residual_muon", "residual_soap"),
        *("residual_free_kl_shampoo", "residual_free_soap", "residual_free_muon"),
    ]
    configs = [f"configs/paper/{arm}.py" for arm in arms]
    assert all((ROOT / config).is_file() for config in configs)
    first = f"rfq compare {' '.join(configs)}"
    data = "--out runs/paper --data.dir my data --data.tokenizer t.model"
    (place.folder / "data" / "tasks").mkdir(parents=True)
    place.run("reproduce_paper.sh", *args)
    place.run("reproduce_paper.sh", "--dry-run", "--target", "cpu:4")
    assert place.called() == [
        f"{first} {data} --seeds 0 1",
        f"{first} {data} --tasks.names all --tasks.dir data/tasks --seeds 0 1",
        f"{first} --dry-run --target cpu:4",
    ]


def test_a_jobset_numbers_its_processes():
    text = (ROOT / "launch" / "gke_jobset.yaml").read_text()
    for variable in ("RFQ_COORDINATOR", "RFQ_NUM_PROCESSES", "RFQ_PROCESS_ID"):
        assert f"- name: {variable}\n" in text
    count = re.search(r"parallelism: (\d+)", text).group(1)
    assert f"completions: {count}" in text
    assert f'value: "{count}"' in text
    # Process 0 of job 0 of the set, at the set's own subdomain.
    assert "value: rfq-train-0-0.rfq:4711" in text
    assert "- name: train\n" in text and "name: rfq\n" in text


def test_quickstart_prepares_and_compares(place):
    demo = sorted(path.name for path in ROOT.glob("configs/demo/*.py"))
    assert place.run("quickstart.sh", "--train.num-steps", "3")[0] == 0
    configs = " ".join(f"configs/demo/{name}" for name in demo)
    assert place.called() == [
        "rfq prepare embedded --out data/embedded",
        f"rfq compare {configs} --out runs/demo --train.num-steps 3",
    ]


@pytest.mark.parametrize("failing", ["setup.sh ", "rfq prepare"])
def test_quickstart_stops_at_what_fails(place, failing):
    assert place.run("quickstart.sh", FAILING=failing)[0] != 0
    assert place.all_called()[-1].startswith(failing)


STAGES = {
    "format": "ruff format",
    "lint": "ruff check",
    "types": "basedpyright --pythonpath",
    "imports": "lint-imports --no-cache",
    "tests": "python -m",
}
PYTEST = "python -m pytest -n auto --maxprocesses 4 --dist loadfile"


def test_the_tests_leave_out_the_slow_ones_by_default(place):
    status, said, _ = place.run("test.sh", "--", "tests/quant", "-x")
    assert status == 0 and said.count(" ok") == len(STAGES)
    assert place.all_called()[0] == "setup.sh --dev"
    assert place.called()[-1] == f"{PYTEST} -m not slow --timeout 300 tests/quant -x"


def test_continuous_integration_runs_every_test(place):
    assert place.run("../.ci/run")[0] == 0
    assert place.called()[-1] == f"{PYTEST} --timeout 1200"


@pytest.mark.parametrize("name", STAGES)
def test_a_failing_stage_fails_the_whole_and_stops_nothing(place, name):
    status, said, _ = place.run("test.sh", FAILING=STAGES[name])
    assert status == 1 and len(place.called()) == len(STAGES)
    assert [line.split()[0] for line in said.splitlines() if "FAILED" in line] == [name]
