"""Networks: found by name, read without running what is in their files, kept between runs.

loading     torchvision's, an exported program, or what a function of the user's returns
programs    programs that torch.export saved
weights     files of weights
downloads   published weights
graphcache  captured structures, in the user's cache folder
"""
