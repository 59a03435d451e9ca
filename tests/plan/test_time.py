"""Seconds of collectives, what hides behind what, and FLOP by part."""

import pytest

from clipfast.loss.traffic import Transfer
from clipfast.models.catalogue import get_config
from clipfast.plan.flop import pair_flop, pass_flop
from clipfast.plan.links import ACHIEVED, Links, links_of
from clipfast.plan.machines import MACHINES, machine_of
from clipfast.plan.published import RUNS
from clipfast.plan.timeline import timeline

A100 = MACHINES["a100-80gb"]


def test_links_take_the_slower_of_what_is_inside_and_outside():
    assert links_of(A100, 8).bytes_per_second == A100.inside * ACHIEVED
    assert links_of(A100, 16).bytes_per_second == A100.outside * ACHIEVED
    assert (links_of(A100, 16).nodes, links_of(A100, 17).nodes) == (2, 3)


def test_links_give_bandwidth_to_large_messages_and_latency_to_small_ones():
    links = Links(ranks=4, nodes=1, bytes_per_second=1e9, inside=1e-6)
    large = Transfer("gradients", "all_reduce", 4_000_000_000)
    assert links.seconds(large) == pytest.approx(2 * 3 / 4 * 4, rel=1e-5)
    small = Transfer("sums", "all_gather", 4, times=10)
    assert links.seconds(small) == pytest.approx(10 * 3e-6, rel=1e-3)
    assert Links(1, 1, 1e9).seconds(large) == 0


def test_links_of_many_nodes_reduce_through_a_tree():
    ring = Links(592, 74, 1e9).seconds(Transfer("norms", "all_gather", 4))
    tree = Links(592, 74, 1e9).seconds(Transfer("maxima", "all_reduce", 4))
    assert tree < 2 * ring / 5


def test_a_transfer_hides_behind_its_part_and_no_further():
    compute = {"image forward": 1.0, "image backward": 2.0, "text forward": 9.0}
    gather = Transfer("texts", "all_gather", 1, behind="image tower")
    scatter = Transfer("texts", "reduce_scatter", 1, behind="image tower's backward")
    plain = Transfer("gradients", "all_reduce", 1)
    made = timeline(compute, [(gather, 0.75), (gather, 0.75), (scatter, 1.5), (plain, 0.5)], True)
    assert [travel.exposed for travel in made.travels] == [0, 0.5, 0, 0.5]
    assert made.seconds == 13.0
    # On a CPU every rank waits.
    waits = timeline(compute, [(gather, 0.75), (plain, 0.5)], overlaps=False)
    assert waits.exposed == 1.25


@pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])
def test_pass_flop_are_twice_as_many_backward_and_a_forward_more_where_blocks_run_again(name):
    architecture = get_config(name)
    none, selective, full = (
        pass_flop(architecture, 22, mode) for mode in ("none", "selective", "full")
    )
    # The first convolution needs no gradient of the pixels.
    assert 1.8 * none.forward < none.backward <= 2.05 * none.forward
    assert none.forward == selective.forward == full.forward
    assert none.backward <= selective.backward < full.backward
    assert 0.5 * none.forward < full.backward - none.backward <= none.forward
    expected = none.forward + none.backward + 6 * 512 * architecture.embed_dim
    assert pair_flop(architecture, 22, 512) == expected


def test_machine_of_an_unknown_card_names_those_that_are_known():
    with pytest.raises(ValueError, match=r"--gpu a100: no such card.*Known: v100-16gb, .*, cpu"):
        machine_of("a100")


def test_published_runs_imply_what_their_hours_say():
    paper, smaller, base, large = RUNS
    # 18 days of 390,625 steps.
    assert paper.step_seconds == pytest.approx(3.98, abs=0.005)
    assert (round(base.gpu_hours), round(large.gpu_hours)) == (4600, 50_800)
    assert base.utilisation() == pytest.approx(0.10, abs=0.01)
    assert 0.15 < smaller.utilisation() < smaller.utilisation(recomputed=True) < 0.3
    assert large.utilisation() == pytest.approx(0.114, abs=0.01)
