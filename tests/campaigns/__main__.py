"""All campaigns, one after the other, with one table at the end; half an hour on two cores."""

from tests.campaigns import (
    calls,
    data,
    disk,
    elastic,
    fuzz,
    hostile,
    hosts,
    images,
    kill,
    ranks,
    soak,
    stores,
    torn,
    twins,
    weights,
)
from tests.campaigns.program import main, run_one

if __name__ == "__main__":
    run_one()
    main(
        {
            "calls": (calls.campaign, calls.COUNT),
            "data": (data.campaign, data.COUNT),
            "twins": (twins.campaign, 20),
            "hostile": (hostile.campaign, 100),
            "hosts": (hosts.campaign, len(hosts.CASES)),
            "elastic": (elastic.campaign, elastic.COUNT),
            "disk": (disk.campaign, len(disk.FAULTS)),
            "images": (images.campaign, images.COUNT),
            "weights": (weights.campaign, weights.COUNT),
            "stores": (stores.campaign, stores.COUNT),
            "soak": (soak.campaign, 400),
            "torn": (torn.campaign, 300),
            "fuzz": (fuzz.campaign, 5000),
            "kill": (kill.campaign, 100),
            "ranks": (ranks.campaign, len(ranks.ATTACKS)),
        },
        __doc__,
    )
