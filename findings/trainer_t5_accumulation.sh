#!/usr/bin/env bash
# transformers==5.23.0 (Trainer with T5ForConditionalGeneration, and with BLIP-2 over a T5)
# gradient_accumulation_steps=N multiplies the logged loss and the gradients of a T5 by N. The forward pass of T5 takes
# any keyword, so the Trainer believes that the model has divided its loss by `num_items_in_batch` and does not divide
# by N itself; but T5 takes the mean over its own batch and ignores that keyword. With an OPT in its place the loss is
# the same for every N.
#
# Seen, the same eight rows in one step with a learning rate of 0:
#   T5, 1 x 8 rows: loss 4.68   T5, 4 x 2 rows: loss 18.71
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip --disable-pip-version-check install --quiet \
  torch==2.13.0 transformers==5.23.0 accelerate==1.15.0

venv/bin/python - <<'PYTHON'
import sys
import warnings

import torch
import transformers

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
sizes = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
rows = [{"input_ids": torch.arange(3, 8), "labels": torch.arange(4, 9)}] * 8
losses = []
for count in (1, 4):
    torch.manual_seed(0)
    config = transformers.T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0)
    arguments = transformers.TrainingArguments(
        "out",
        per_device_train_batch_size=8 // count,
        gradient_accumulation_steps=count,
        max_steps=1,
        learning_rate=0.0,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    model = transformers.T5ForConditionalGeneration(config)
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    losses.append(next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry))
print(f"T5, 1 x 8 rows: loss {losses[0]:.2f}   T5, 4 x 2 rows: loss {losses[1]:.2f}")
if abs(losses[1] - 4 * losses[0]) > 0.01:
    sys.exit("the behaviour has changed")
PYTHON
