"""The paper's lemmas, theorems and constants, each predicted and measured.

Each module has the predictions and measurements of its subject as pure functions, and
below them one function per claim that pairs the two into `check.Check`s. Claims are
the paper's (Lemma 1 to 14, Corollary 1, Theorem 1 and 2, appendix C.3), in `run.PAPER`,
or corrections of ours, in `run.CORRECTIONS`; `rfq theory` prints both.

    laws         distributions, quadrature, Monte Carlo with standard errors
    activations  moments of phi, variance with depth          Lemma 1, 5, 12
    mixing       y = W u and y = W phi(x)                      Lemma 2, 6, 7, Theorem 2
    residual     y = x + W phi(x)                              Lemma 3, 11
    stack        many layers of either, simulated              Theorem 1
    updates      what a step does to an isometry               Lemma 4, 8, 9, 10
    attention    scores, softmax, averaging                    Lemma 13, 14

gamma is the excess kurtosis throughout, d the width, phi the activation function.
"""
