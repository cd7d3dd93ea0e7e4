"""The cost model: what messages and bytes cost on each class of link, and how long any algorithm takes by that.

observations = observe(RunFolder.open(path))
model = fit(observations)
model.predict(case)                    # Prediction, or None where nothing can be said
"""

from __future__ import annotations

from commbench.cost_model.costs import Prediction
from commbench.cost_model.model import Model, fit
from commbench.cost_model.observe import Observation, observe

__all__ = ["Model", "Observation", "Prediction", "fit", "observe"]
