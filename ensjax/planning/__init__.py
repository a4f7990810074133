"""Planning: what a job needs before it runs, what fits, what is fast.

from ensjax.planning import plan
print(plan(job).peak_bytes)
"""

from ensjax.planning.choices import Choice, Choices, Settings, find_choices
from ensjax.planning.collectives import Collective, read_collectives
from ensjax.planning.mapped_job import MappedJob
from ensjax.planning.memory import DoesNotFit, ProgramMemory
from ensjax.planning.plan import plan
from ensjax.planning.planned import MemberSize, Plan, StackPlan
from ensjax.planning.step_cost import StepCost
from ensjax.planning.topology import NoTopology, topology_devices
from ensjax.planning.trial import Trial
from ensjax.planning.tuning import Timing, Tuning, tune

__all__ = [
    "Choice",
    "Choices",
    "Collective",
    "DoesNotFit",
    "MappedJob",
    "MemberSize",
    "NoTopology",
    "Plan",
    "ProgramMemory",
    "Settings",
    "StackPlan",
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
