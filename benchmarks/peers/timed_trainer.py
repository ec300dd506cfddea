"""nnU-Net's default trainer, ended by the clock; it runs in nnU-Net's environment, not in that of this project."""

import os
from time import time

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class TimedTrainer(nnUNetTrainer):
    """Trains for ``PEERS_SECONDS`` from ``PEERS_BEGIN``, in seconds since 1970, with nnU-Net's own schedule.

    The learning rate falls by nnU-Net's polynomial of the epochs that are done; here the share of the time that has
    passed stands for the share of the epochs. There is no validation between epochs, which decides nothing in nnU-Net,
    and none after the training.
    """

    def initialize(self):
        """Seed what PyTorch and NumPy draw in this process; nnU-Net's own processes for crops take no seed."""
        torch.manual_seed(int(os.environ["PEERS_SEED"]))
        np.random.seed(int(os.environ["PEERS_SEED"]))
        super().initialize()

    def run_training(self):
        """Train until the time has passed."""
        begin, seconds = float(os.environ["PEERS_BEGIN"]), float(os.environ["PEERS_SECONDS"])
        self.on_train_start()
        self.on_epoch_start()
        self.on_train_epoch_start()
        outputs = []
        while not outputs or (time() - begin) / seconds < 1:
            passed = min((time() - begin) / seconds, 1.0)
            self.lr_scheduler.step(passed * self.num_epochs)
            outputs.append(self.train_step(next(self.dataloader_train)))
        self.on_train_epoch_end(outputs)
        self.on_train_end()
        print(f"TimedTrainer: {len(outputs)} batches of {self.batch_size}", flush=True)

    def perform_actual_validation(self, save_probabilities=False):
        """Predict nothing: the slices that test are predicted by the next command."""
