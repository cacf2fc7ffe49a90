"""A network as a graph of operations: captured once, its forward pass recorded.

capture        what a module does, exported and joined with its weights
decomposition  operations that no rule knows, taken apart
spelling       each operation said in one way
simplify       fewer nodes, batch norms folded in
graph          the graph, and the recording of a forward pass
schedule       how the forward pass is run
packed         convolutions' weights, laid out once
shares         softmax without shares too small to count
head           what the network ends in: where its class map lies
class_map      class maps, and where walks begin anew
vectors_end    where vectors end and a map begins
way            all evidence of a target through a part of the network at once
slopes         what one more of an operation's inputs would add
finer          a finer class map where the last one has few places
tokens         the map that tokens were made of
"""
