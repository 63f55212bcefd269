package registry

import (
	"context"
	"errors"
	"net/http"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/transport"
)

// Delete asks for the record first, since the server would delete whatever
// the tag names by now, and looks again when the server fails: as shipped it
// answers every permitted delete with 500.
func (b *registry) Delete(ctx context.Context, rec backends.Record) error {
	if err := b.cred.check(opDelete, rec.Ref); err != nil {
		return err
	}
	now, err := b.stat(ctx, opDelete, rec.Ref)
	switch {
	case err != nil:
		return err
	case now.Version != rec.Version:
		return backends.Errorf(opDelete, rec.Ref, backends.Stale, "the tag names container %s now, not %s", now.Version, rec.Version)
	case now.Frozen:
		return &backends.Error{Op: opDelete, Ref: rec.Ref, Kind: backends.Frozen, Hint: "unfreeze it on the registry's web page first"}
	}
	err = b.signed(opDelete, rec.Ref, "delete", storedName(rec.Ref), func(auth string) error {
		return b.json(ctx, call{
			Request: transport.Request{
				Op: opDelete, Ref: rec.Ref, Method: http.MethodDelete, NoRetry: true,
				URL: b.at(false, append([]string{"api", "container"}, addressOf(rec.Ref)...)...),
			},
			auth: auth, api: true,
		}, nil)
	})
	switch {
	case err == nil || errors.Is(err, backends.NotFound):
		return nil
	case ctx.Err() != nil:
		return err
	}
	switch backends.KindOf(err) {
	case backends.Other, backends.Unavailable, backends.Timeout: // it may have worked
		if _, serr := b.stat(ctx, opDelete, rec.Ref); errors.Is(serr, backends.NotFound) {
			return nil
		}
	}
	return serverFault(err, "this server's DELETE is known to fail; delete the image on the registry's web page")
}
