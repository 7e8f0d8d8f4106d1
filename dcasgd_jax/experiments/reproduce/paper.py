"""What the paper reports, to be put beside what is measured here.

Zheng et al., *Asynchronous Stochastic Gradient Descent with Delay Compensation*, ICML 2017. Its
ResNet-20 trains for 160 epochs on all 50,000 images.
"""

BATCH_SIZE = 128  # per worker
EPOCHS = 160
LEARNING_RATE = 0.5  # of every method; tuned for sequential SGD
MOMENTUM = 0.0
WEIGHT_DECAY = 0.0
LAMBDA0 = {
    "dcasgd-c": 0.04,
    "dcasgd-a": 2.0,
    "dcasgd-capped": 300.0,  # not the paper's: the best of a short trial of ours
}

TEST_ERROR_PERCENT = {  # (method, workers) -> CIFAR-10
    ("sgd", 1): 8.65,
    ("asgd", 4): 9.27,
    ("ssgd", 4): 9.17,
    ("dcasgd-c", 4): 8.67,
    ("dcasgd-a", 4): 8.19,
    ("asgd", 8): 10.26,
    ("ssgd", 8): 10.10,
    ("dcasgd-c", 8): 9.27,
    ("dcasgd-a", 8): 8.57,
}
