"""python -m clipfast.env: what it prints, what the stamp holds, and what it leaves unimported."""

from __future__ import annotations

import json
import subprocess
import sys

import torch

from clipfast import env


def test_env_stamp_is_json_and_names_what_a_figure_depends_on():
    stamp = json.loads(json.dumps(env.stamp()))
    assert stamp["versions"]["torch"] == torch.__version__
    assert stamp["python"] == sys.version.split()[0]
    assert stamp["device"]["cpu"]
    assert stamp["device"]["threads"] == torch.get_num_threads()
    assert len(stamp["device"]["gpus"]) == torch.cuda.device_count()
    assert stamp["date"].endswith("+00:00")


def test_env_report_says_why_parts_are_absent(monkeypatch):
    monkeypatch.setattr(env.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(env, "version", lambda *names: None)
    text = env.report(env.stamp())
    assert "not built: not compiled here: pip install -e ." in text
    assert "Triton is not installed" in text
    for part in env.OPTIONAL:
        assert part in text
    # torch is there: it imported.
    absent = [line for line in text.splitlines() if "  absent" in line or " absent " in line]
    assert len(absent) == len(env.CORE) - 1 + len(env.OPTIONAL)


def test_env_report_says_what_is_built():
    info = env.stamp()
    info["extension"] = {
        "built": True,
        "cpu_capability": "avx2",
        "cpu_capabilities": ["default", "avx2"],
        "cuda": False,
        "cuda_archs": "",
        "cuda_reason": "CLIPFAST_BUILD_CUDA=0",
    }
    assert "CUDA        not built: CLIPFAST_BUILD_CUDA=0" in env.report(info)
    info["extension"] |= {"cuda": True, "cuda_archs": "8.0;9.0", "cuda_reason": "nvcc is 12.9"}
    assert "CUDA        built for 8.0;9.0 (nvcc is 12.9)" in env.report(info)


def test_env_extension_built_for_another_torch_is_explained(monkeypatch):
    def broken(name):
        raise ImportError("undefined symbol: _ZN2at5emptyE")

    monkeypatch.setattr(env.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(env.importlib, "import_module", broken)
    info = env.extension()
    assert not info["built"]
    assert "undefined symbol" in info["reason"]
    assert "pip install -e ." in info["reason"]


def test_env_commit_is_none_outside_a_repository(monkeypatch, tmp_path):
    (tmp_path / "clipfast").mkdir()
    monkeypatch.setattr(env.clipfast, "__file__", str(tmp_path / "clipfast" / "__init__.py"))
    assert env.commit() is None


def _fake_import(monkeypatch, code: int, stderr: str) -> None:
    done = subprocess.CompletedProcess([], code, "", stderr)
    monkeypatch.setattr(env.subprocess, "run", lambda *_, **__: done)


def test_env_says_why_open_clip_does_not_import_and_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(env, "version", lambda *names: "1.0")
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    error = "Traceback ...\nRuntimeError: operator torchvision::nms does not exist\n"
    _fake_import(monkeypatch, 1, error)
    env.main(["--peers"])
    told = capsys.readouterr().out
    assert "import open_clip fails: RuntimeError: operator torchvision::nms does not exist" in told
    assert '"torchvision==0.28.*" --index-url https://download.pytorch.org/whl/cpu' in told
    monkeypatch.setattr(torch, "__version__", "2.12.1")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    told = env.open_clip_problem()
    assert '"torchvision==0.27.*" --index-url https://download.pytorch.org/whl/cu130' in told
    _fake_import(monkeypatch, 1, "ModuleNotFoundError: No module named 'ftfy'")
    assert env.open_clip_problem().startswith("import open_clip fails: ModuleNotFoundError")
    assert "--index-url" not in env.open_clip_problem()


def test_env_says_nothing_of_an_open_clip_that_imports_or_is_absent(monkeypatch, capsys):
    _fake_import(monkeypatch, 0, "")
    env.main([])
    assert "\npeers\n" not in capsys.readouterr().out
    monkeypatch.setattr(env, "version", lambda *names: None)
    _fake_import(monkeypatch, 1, "ModuleNotFoundError: No module named 'open_clip'")
    assert env.open_clip_problem() is None


def test_env_module_prints_without_heavy_imports():
    script = (
        "import sys\nfrom clipfast import env\nenv.main([])\n"
        "heavy = {'deepspeed', 'nvidia.dali', 'triton', 'matplotlib', 'tensorboard'}\n"
        "print('heavy', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("clipfast ")
    assert done.stdout.rstrip().endswith("heavy []")
