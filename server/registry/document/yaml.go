package document

import (
	"bytes"
	"fmt"

	yamlnodes "go.yaml.in/yaml/v3"
	"sigs.k8s.io/yaml"
)

// maxWritten is how large a YAML document may be with its aliases written out:
// as large as one without any.
const maxWritten = 3 << 20

// FromYAML gives the first document of data as JSON, as far as nobody minds its
// size and nesting.
func FromYAML(data []byte) ([]byte, error) {
	if err := checkAliases(data); err != nil {
		return nil, err
	}
	out, err := yaml.YAMLToJSON(data)
	if err != nil {
		return nil, err
	}
	return out, CheckShape(out)
}

// checkAliases refuses a document whose aliases stand for more than a body may
// hold. The decoder counts what aliases repeat, but not how long it is.
func checkAliases(data []byte) error {
	if bytes.IndexByte(data, '&') < 0 || bytes.IndexByte(data, '*') < 0 {
		return nil
	}
	var root yamlnodes.Node
	if err := yamlnodes.Unmarshal(data, &root); err != nil {
		return err
	}
	w := written{sizes: map[*yamlnodes.Node]int{}}
	if w.size(&root) > maxWritten {
		return fmt.Errorf("yaml: document is larger than %d bytes with its aliases written out", maxWritten)
	}
	return nil
}

// written measures nodes with their aliases written out.
type written struct{ sizes map[*yamlnodes.Node]int }

func (w written) size(n *yamlnodes.Node) int {
	if n.Kind == yamlnodes.AliasNode {
		n = n.Alias
	}
	if known, ok := w.sizes[n]; ok {
		return known
	}
	w.sizes[n] = 0 // an anchor in itself: the decoder refuses it
	total := 1 + len(n.Value)
	for _, part := range n.Content {
		if total += w.size(part); total > maxWritten {
			total = maxWritten + 1
			break
		}
	}
	w.sizes[n] = total
	return total
}
