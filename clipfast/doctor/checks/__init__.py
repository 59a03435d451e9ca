"""The checks in their order: what needs nothing of other ranks comes first."""

from clipfast.doctor.check import Check
from clipfast.doctor.checks.ceilings import CEILINGS
from clipfast.doctor.checks.clock import CLOCK
from clipfast.doctor.checks.collectives import COLLECTIVES
from clipfast.doctor.checks.decoding import DECODING
from clipfast.doctor.checks.devices import DEVICES
from clipfast.doctor.checks.disk import DISK
from clipfast.doctor.checks.flags import FLAGS
from clipfast.doctor.checks.group import GROUP
from clipfast.doctor.checks.installed import INSTALLED
from clipfast.doctor.checks.limits import LIMITS
from clipfast.doctor.checks.loss import LOSS
from clipfast.doctor.checks.operators import OPERATORS_HERE
from clipfast.doctor.checks.shared_memory import SHARED_MEMORY
from clipfast.doctor.checks.step import STEP
from clipfast.doctor.checks.variables import VARIABLES

CHECKS: tuple[Check, ...] = (
    *(INSTALLED, OPERATORS_HERE, FLAGS, VARIABLES, LIMITS, DEVICES, SHARED_MEMORY, DISK),
    *(CLOCK, GROUP, CEILINGS, COLLECTIVES, LOSS, STEP, DECODING),
)
