"""Training: the mathematics of a step (`step`), a run (`run`), its snapshots and what it tells the person who watches it."""

from jaxcodec.training.step import (
    TrainState as TrainState,
    eval_step as eval_step,
    init_state as init_state,
    latent_gradient_norms as latent_gradient_norms,
    loss_bound as loss_bound,
    loss_terms as loss_terms,
    loss_weight as loss_weight,
    make_optimizer as make_optimizer,
    term_names as term_names,
    total_loss as total_loss,
    train_step as train_step,
)
