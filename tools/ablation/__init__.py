"""Train and compare variants of IMSE. Importing this package registers the network "imse_ablation"."""

from models import register
from tools.ablation.networks import AblatedIMSE, ImseAblationConfig

register("imse_ablation", ImseAblationConfig, AblatedIMSE)
