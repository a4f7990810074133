"""Planning: what a training job needs before it runs, what fits, what is fast.

from ensjax.planning import plan
print(plan(job).peak_bytes)
"""

from ensjax.planning.choices import Choice, Choices, Settings, find_choices
from ensjax.planning.collectives import Collective, read_collectives
from ensjax.planning.memory import DoesNotFit, ProgramMemory
from ensjax.planning.plan import MemberSize, Plan, plan
from ensjax.planning.step_cost import StepCost
from ensjax.planning.topology import NoTopology, topology_devices
from ensjax.planning.trial import Trial
from ensjax.planning.tuning import Timing, Tuning, tune

__all__ = [
    "Choice",
    "Choices",
    "Collective",
    "DoesNotFit",
    "MemberSize",
    "NoTopology",
    "Plan",
    "ProgramMemory",
    "Settings",
    "StepCost",
    "Timing",
    "Trial",
    "Tuning",
    "find_choices",
    "plan",
    "read_collectives",
    "topology_devices",
    "tune",
]
