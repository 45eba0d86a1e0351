"""How long tests time a model and warm it up: less than users do. Processes differ more than parts of one.

Import it before anything else of edgeprune reads the limits.
"""

from __future__ import annotations

from dataclasses import replace

from edgeprune import limits

limits.LIMITS = replace(limits.LIMITS, timed_s=0.05, warmup_s=0.2)
