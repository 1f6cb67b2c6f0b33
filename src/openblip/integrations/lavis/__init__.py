"""LAVIS' names for BLIP-2, BLIP and CLIP (https://github.com/salesforce/LAVIS): its scripts run with another import.

>>> from openblip.integrations.lavis import load_model_and_preprocess  # was: from lavis.models import ...
>>> model, vis_processors, txt_processors = load_model_and_preprocess("blip2_opt", "caption_coco_opt2.7b", is_eval=True)
>>> model.generate({"image": vis_processors["eval"](photo).unsqueeze(0)})
"""

from openblip.integrations.lavis.blip_matching import compute_gradcam
from openblip.integrations.lavis.datasets import dataset_zoo, load_dataset
from openblip.integrations.lavis.loading import (
    load_model,
    load_model_and_preprocess,
    load_preprocess,
    load_processor,
    model_zoo,
    registry,
    setup_task,
)

__all__ = [
    "compute_gradcam",
    "dataset_zoo",
    "load_dataset",
    "load_model",
    "load_model_and_preprocess",
    "load_preprocess",
    "load_processor",
    "model_zoo",
    "registry",
    "setup_task",
]
