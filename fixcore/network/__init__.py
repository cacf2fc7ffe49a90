"""A network as a graph of operations: captured once, its forward pass recorded.

capture        what a module does, exported and joined with its weights
decomposition  operations that no rule knows, taken apart
spelling       each operation said in one way
simplify       fewer nodes, batch norms folded in
graph          the graph, and the recording of a forward pass
schedule       how the forward pass is run
packed         convolutions' weights, laid out once
head           what the network ends in: where its class map lies
class_map      class maps, and where walks begin anew
"""
