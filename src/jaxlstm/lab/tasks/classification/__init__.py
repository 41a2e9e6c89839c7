"""Labels of sequences: one for each, one for each step, or a shorter sequence.

    classify   p(label | x_1 … x_T)                softmax of a summary of all steps
    tag        p(y_1 … y_T | x_1 … x_T)            softmax of each step, or a CRF
    ctc        p(symbols | x_1 … x_T)              a sum over alignments

These are three tasks and not one with three kinds. Each has its own loss, its own
options (pooling, random field, decoding) that would have no effect in the others, its
own results, and its own starter config. They share the data, the batches and the
recurrent model, which are the modules beside this one.

The best model is that of the least validation loss. The accuracy of a small validation
part has few values: many checkpoints share the largest, and the first of them has
seldom learned the most.
"""
