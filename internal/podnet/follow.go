package podnet

import (
	"context"
	"encoding/json"
	"errors"
	"io"
)

// Follow opens a stream of Updates and hands them to take until the stream ends,
// which it always does some time; the error says how.
func Follow(ctx context.Context, open func(context.Context) (io.ReadCloser, error), take func(Update)) error {
	stream, err := open(ctx)
	if err != nil {
		return err
	}
	defer stream.Close()
	lines := json.NewDecoder(stream)
	for first := true; ; first = false {
		var update Update
		if err := lines.Decode(&update); err != nil {
			return err
		}
		if first && !update.Whole {
			return errors.New("the stream does not begin with all nodes")
		}
		take(update)
	}
}
