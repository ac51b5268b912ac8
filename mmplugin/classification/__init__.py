"""Classification training of the backbones with mmpretrain, which only classification configs import."""
