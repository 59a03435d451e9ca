"""A run goes on with the library that multiplied before."""

import torch

from clipfast.engine import cpu_products
from clipfast.engine.launch import Process
from clipfast.ops import products
from clipfast.ops.products import library

MKL = products.Libraries.all("mkl").names


def test_a_gpu_has_nothing_to_agree_on():
    assert cpu_products.agree(Process(0, 0, 1, 1, torch.device("cuda", 0))) == {}
    assert cpu_products.go_on_with(MKL, {}) == ({}, "")


def test_a_resumed_run_takes_what_was_saved(monkeypatch):
    before = products.current_libraries()
    monkeypatch.delenv(library.VARIABLE, raising=False)
    other = {**before.names, "forward.many": "mkl"}
    assert cpu_products.go_on_with(other, before.names) == (other, "")
    assert products.current_libraries().names == other
    # A checkpoint that says nothing changes nothing.
    assert cpu_products.go_on_with({}, other) == (other, "")
    products.set_libraries(before)


def test_what_cannot_or_shall_not_be_taken_is_told(monkeypatch):
    before = products.current_libraries()
    monkeypatch.delenv(library.VARIABLE, raising=False)
    monkeypatch.setattr(library, "has_onednn", lambda: False)
    saved = products.Libraries.all("onednn").names
    chosen, note = cpu_products.go_on_with(saved, MKL)
    assert chosen == MKL
    assert "AVX-512" in note
    monkeypatch.setenv(library.VARIABLE, "mkl")
    chosen, note = cpu_products.go_on_with(saved, MKL)
    assert chosen == MKL
    assert "CLIPFAST_CPU_PRODUCTS says otherwise" in note
    assert products.current_libraries() == before
