package cache

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"time"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/imagefile"
)

// inspectLimit bounds how long an image's own data may take to read.
const inspectLimit = 15 * time.Second

// InspectState says in a word what is known of an image's own data.
type InspectState string

// The states.
const (
	InspectDone         InspectState = "done"
	InspectNeedsPull    InspectState = "needs-pull"    // the bytes are not here, and reading parts is not possible
	InspectNotAvailable InspectState = "not-available" // this kind of image has none
	InspectFailed       InspectState = "failed"        // it could not be read now; the log says why
)

// Inspect gives what an image says of itself: from what was kept by its
// digest, from bytes that are here, or, with network, through a few ranges;
// never by downloading the image. The result is nil unless the state is done.
func (c *Cache) Inspect(ctx context.Context, rec backends.Record, network bool) (*imagefile.Inspect, InspectState) {
	_, digest, here := c.Store.Cached(rec)
	key := "inspect " + rec.Ref.String() + "@" + rec.Version
	switch {
	case here && !digest.IsZero():
		key = "inspect " + digest.String()
	case rec.Digest.Algorithm == "sha256":
		key = "inspect " + rec.Digest.String()
	}
	if kept, ok := c.Catalog.Note(key); ok {
		var i imagefile.Inspect
		if json.Unmarshal(kept, &i) == nil {
			return &i, InspectDone
		}
	}
	ranges := c.backend.Ranges != nil || c.backend.Local != nil
	if !here && (!network || !ranges) {
		return nil, InspectNeedsPull
	}
	ctx, cancel := context.WithTimeout(ctx, inspectLimit)
	defer cancel()
	i, err := c.readInspect(ctx, rec)
	switch {
	case errors.Is(err, backends.Unsupported), errors.Is(err, backends.Invalid):
		return nil, InspectNotAvailable
	case err != nil:
		c.log.Debug("the image's own data was not read", "image", rec.Ref.String(), "error", err)
		return nil, InspectFailed
	}
	if kept, err := json.Marshal(i); err == nil {
		c.Catalog.SetNote(key, kept)
	}
	return &i, InspectDone
}

func (c *Cache) readInspect(ctx context.Context, rec backends.Record) (imagefile.Inspect, error) {
	blob, err := c.Store.Open(ctx, rec)
	if err != nil {
		return imagefile.Inspect{}, err
	}
	i, err := imagefile.ReadInspect(ctx, blobReader{ctx, blob}, blob.Size())
	return i, errors.Join(err, blob.Close())
}

// blobReader reads a blob under one context.
type blobReader struct {
	ctx  context.Context
	blob *Blob
}

func (r blobReader) ReadAt(p []byte, off int64) (int, error) {
	if off >= r.blob.Size() {
		return 0, io.EOF
	}
	return r.blob.ReadAt(r.ctx, p, off)
}
