"""transformers' names (https://github.com/huggingface/transformers) for BLIP-2, BLIP and CLIP.

Its scripts run with another import.

>>> from openblip.integrations.transformers import Blip2ForConditionalGeneration, Blip2Processor
>>> processor = Blip2Processor.from_pretrained("Salesforce/blip2-opt-2.7b")
>>> model = Blip2ForConditionalGeneration.from_pretrained("Salesforce/blip2-opt-2.7b", device_map="auto")
>>> inputs = processor(images=photo, text="Question: what is it? Answer:", return_tensors="pt")
>>> processor.batch_decode(model.generate(**inputs, max_new_tokens=20), skip_special_tokens=True)

Ids, scores and losses are those of transformers 5. It need not be installed.
"""

from openblip.integrations.transformers.auto import (
    AutoModelForImageTextToText,
    AutoModelForVision2Seq,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
)
from openblip.integrations.transformers.blip import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
)
from openblip.integrations.transformers.blip_model import BlipModel
from openblip.integrations.transformers.clip import CLIPImageProcessor, CLIPModel, CLIPProcessor
from openblip.integrations.transformers.conditional_generation import Blip2ForConditionalGeneration, Blip2Model
from openblip.integrations.transformers.optimizers import AdamW, get_linear_schedule_with_warmup
from openblip.integrations.transformers.outputs import BatchFeature
from openblip.integrations.transformers.processor import Blip2Processor, BlipImageProcessor, BlipProcessor
from openblip.integrations.transformers.retrieval import (
    Blip2ForImageTextRetrieval,
    Blip2TextModelWithProjection,
    Blip2VisionModelWithProjection,
)
from openblip.integrations.transformers.tokenizer import Blip2Tokenizer

__all__ = [
    "AdamW",
    "AutoModelForImageTextToText",
    "AutoModelForVision2Seq",
    "AutoModelForVisualQuestionAnswering",
    "AutoProcessor",
    "BatchFeature",
    "Blip2ForConditionalGeneration",
    "Blip2ForImageTextRetrieval",
    "Blip2Model",
    "Blip2Processor",
    "Blip2TextModelWithProjection",
    "Blip2Tokenizer",
    "Blip2VisionModelWithProjection",
    "BlipForConditionalGeneration",
    "BlipForImageTextRetrieval",
    "BlipForQuestionAnswering",
    "BlipImageProcessor",
    "BlipModel",
    "BlipProcessor",
    "CLIPImageProcessor",
    "CLIPModel",
    "CLIPProcessor",
    "get_linear_schedule_with_warmup",
]
