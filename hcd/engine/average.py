"""The mean of a network's weights over the last epoch, in the place of where its last step happens
to end (stochastic weight averaging; Izmailov et al., 2018)."""

import torch
from fastai.basic_train import LearnerCallback


class MeanWeights(LearnerCallback):
    """End each fit of the whole network on the mean of weights and batch norms' running values over
    the steps of its last epoch; a fit with frozen layers, and one that ends early, as it is.

    The mean is taken within one epoch, so a resumed fit, which begins with an epoch, needs nothing
    kept. Validation after the last epoch already sees the mean.
    """

    mean: list | None = None

    def on_train_begin(self, **kwargs):
        """Begin anew."""
        self.mean, self.count = None, 0

    def on_step_end(self, epoch, n_epochs, num_batch, **kwargs):
        """Take the weights after this step into the mean; after the last one, put it in their
        place."""
        model = self.learn.model
        if epoch < n_epochs - 1 or not all(one.requires_grad for one in model.parameters()):
            return
        values = [one for one in model.state_dict().values() if one.is_floating_point()]
        self.count += 1
        with torch.no_grad():
            if self.mean is None:
                self.mean = [one.clone() for one in values]
            else:
                torch._foreach_lerp_(self.mean, values, 1 / self.count)
            if num_batch == len(self.learn.data.train_dl) - 1:
                torch._foreach_copy_(values, self.mean)
                self.mean, self.count = None, 0
