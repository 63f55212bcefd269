package registry

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/transport"
)

func split(path string) []string { return strings.Split(path, "/") }

// Stat asks for one record; a private one takes a second, signed request the
// first time its collection is met. The name is looked up as the server stores
// names, and as given if that is another and is not there.
func (b *registry) Stat(ctx context.Context, ref backends.Ref) (backends.Record, error) {
	if err := ref.Check(); err != nil {
		return backends.Record{}, invalid(opStat, ref, "", "%w", err)
	}
	if ref.IsCollection() {
		return b.statCollection(ctx, ref)
	}
	rec, err := b.stat(ctx, opStat, storedRef(ref))
	if errors.Is(err, backends.NotFound) && storedRef(ref) != ref {
		rec, err = b.stat(ctx, opStat, ref)
	}
	return rec, err
}

func (b *registry) statCollection(ctx context.Context, ref backends.Ref) (backends.Record, error) {
	rec := backends.Record{Ref: ref, Size: backends.UnknownSize}
	c, err := b.collection(ctx, opStat, ref.Collection)
	switch {
	case err == nil:
		rec.Collection = c.Name
		return rec, nil
	case statusOf(err) == http.StatusInternalServerError:
		// What the view does with a private collection.
		rec.Collection = strings.ToLower(ref.Collection)
		return rec, nil
	}
	return backends.Record{}, err
}

// stat gives the record under exactly this name. While the record view is
// used up, or the image over its weekly limit, the search tells the same and
// is not limited so.
func (b *registry) stat(ctx context.Context, op string, ref backends.Ref) (backends.Record, error) {
	rec, _, err := b.record(ctx, op, ref)
	if kind := backends.KindOf(err); kind != backends.Throttled && kind != backends.Quota {
		return rec, err
	}
	found, serr := b.search(ctx, op, ref)
	if serr != nil && !errors.Is(serr, backends.NotFound) {
		return rec, err
	}
	return found, serr
}

// record asks the record view and also gives the secret that opens the
// collection's downloads, which it remembers.
func (b *registry) record(ctx context.Context, op string, ref backends.Ref) (backends.Record, string, error) {
	get := func(auth string) (wireContainer, error) {
		var w wireContainer
		err := b.json(ctx, call{
			Request: transport.Request{Op: op, Ref: ref, URL: b.at(false, append([]string{"api", "container"}, addressOf(ref)...)...)},
			auth:    auth, view: viewRecord, api: true,
		}, &w)
		return w, err
	}
	b.mu.Lock()
	private := b.private[ref.Collection]
	b.mu.Unlock()
	var w wireContainer
	var err error
	if !private {
		w, err = get(b.tokenHeader())
		// To a request without a header the view tells of a private
		// collection; one with a token makes it fail.
		private = statusOf(err) == http.StatusForbidden && errors.Is(err, backends.Denied) && !b.showToken ||
			statusOf(err) == http.StatusInternalServerError && b.showToken
	}
	if private {
		err = b.signed(op, ref, "pull", ref.Image, func(auth string) (err error) {
			w, err = get(auth)
			return err
		})
	}
	if err == nil {
		err = b.check(op, ref, w)
	}
	if err != nil {
		return backends.Record{}, "", serverFault(err, "")
	}
	secret := collectionSecret(w.Image)
	b.mu.Lock()
	defer b.mu.Unlock()
	if private {
		b.private[ref.Collection] = true
	}
	if secret != "" {
		b.secrets[ref.Collection] = secret
	}
	return b.recordOf(w), secret, nil
}

// check makes sure that a record is the one that was asked for.
func (b *registry) check(op string, ref backends.Ref, w wireContainer) error {
	got := refOf(w.Collection, w.Name, w.Tag)
	switch {
	case unfinished(w.Tag):
		return &backends.Error{Op: op, Ref: ref, Kind: backends.NotFound, Err: errors.New("an upload that has not ended")}
	case w.ID <= 0 || got != ref:
		return backends.Errorf(op, ref, backends.Unavailable, "the registry answers with another image")
	}
	return nil
}

// search gives the record under exactly this name by the search view. It
// knows private images as well, and no download address.
func (b *registry) search(ctx context.Context, op string, ref backends.Ref) (backends.Record, error) {
	elements := append([]string{"api", "container", "search", "collection"}, split(ref.Collection)...)
	elements = append(append(append(elements, "name"), split(storedName(ref))...), "tag", ref.Tag)
	var found []wireContainer
	err := b.json(ctx, call{
		Request: transport.Request{Op: op, Ref: ref, URL: b.at(false, elements...)},
		auth:    b.tokenHeader(), api: true,
	}, &found)
	if err != nil {
		return backends.Record{}, serverFault(err, "")
	}
	for _, w := range found {
		if b.check(op, ref, w) == nil {
			return b.recordOf(w), nil
		}
	}
	return backends.Record{}, &backends.Error{Op: op, Ref: ref, Kind: backends.NotFound}
}

// version gives the container id of a record, or an error of kind Stale: a
// record of anything else is not from this registry.
func version(op string, rec backends.Record) (int64, error) {
	id, err := strconv.ParseInt(rec.Version, 10, 64)
	if err != nil || id <= 0 {
		return 0, backends.Errorf(op, rec.Ref, backends.Stale, "the version is no container number")
	}
	return id, nil
}
