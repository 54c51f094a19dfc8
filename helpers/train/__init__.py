"""Pre-training and fine-tuning.

pretrain    the loop over the packed corpus
finetune    the loop over a task
foreign     a checkpoint from elsewhere, brought into a run
heads       an encoder with a fresh head, the rates of its layers
tuning      learning rate and epochs chosen on held-out train rows
objectives  masked language modelling, replaced-token detection
batches     rows of the packed corpus; a task's rows, batched by length
held_out    the loss on documents that are never trained on
floor       a bag of words and the most frequent answer, as records
checkpoint  training state on disk
loop        what both loops share: precision, schedule, clipping
graphs      steps replayed as CUDA graphs
records     one JSON file a fine-tuning
provenance  code, versions, hardware
"""
