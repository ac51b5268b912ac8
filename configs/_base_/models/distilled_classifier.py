# A second linear classifier learns the class that a teacher predicts; predictions average both.
_base_ = 'classifier.py'
model = dict(
    head=dict(distilled=True, distillation_share=0.5),
    # RegNetY-16GF, 82.9 % top-1, the teacher of both EfficientFormer papers. timm downloads its weights.
    teacher=dict(timm='regnety_160.deit_in1k'),
)
