package registry

import (
	"context"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"

	"github.com/sregistry/sregistry-fs/backends"
	"github.com/sregistry/sregistry-fs/backends/transport"
)

// Operations, as errors name them.
const (
	opList   = "list"
	opStat   = "stat"
	opOpen   = "open"
	opPush   = "push"
	opDelete = "delete"
)

const (
	// pageSize is asked for in one request; the server bounds it by nothing.
	pageSize = 100_000
	// pageBytes bounds one page: some 600 bytes for each of so many records.
	pageBytes = 64 << 20
	// maxPages ends a listing that does not.
	maxPages = 100
)

// pages yields the items of a paged listing.
func pages[T any](ctx context.Context, b *registry, path string) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		got := 0
		for range maxPages {
			u := b.at(true, "api", path)
			u.RawQuery = url.Values{"limit": {strconv.Itoa(pageSize)}, "offset": {strconv.Itoa(got)}}.Encode()
			var page struct {
				Count   int `json:"count"`
				Results []T `json:"results"`
			}
			err := b.json(ctx, call{
				Request: transport.Request{Op: opList, URL: u, MaxBody: pageBytes},
				auth:    b.tokenHeader(), api: true,
			}, &page)
			if err == nil && len(page.Results) == 0 && got < page.Count {
				err = backends.Errorf(opList, backends.Ref{}, backends.Unavailable, "the listing of %s ends after %d of %d", path, got, page.Count)
			}
			if err != nil {
				yield(zero, serverFault(err, ""))
				return
			}
			for _, item := range page.Results {
				if !yield(item, nil) {
					return
				}
			}
			if got += len(page.Results); got >= page.Count {
				return
			}
		}
		yield(zero, backends.Errorf(opList, backends.Ref{}, backends.Unavailable, "the listing of %s does not end after %d pages", path, maxPages))
	}
}

// Collections lists the public collections in one request. Private ones
// cannot be listed with a token, only in a browser.
func (b *registry) Collections(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		seen := map[string]bool{}
		for c, err := range pages[wireCollection](ctx, b, "collections") {
			if err != nil {
				yield("", err)
				return
			}
			if !seen[c.Name] {
				seen[c.Name] = true
				if !yield(c.Name, nil) {
					return
				}
			}
		}
	}
}

// Tree lists every public image in two requests: collections, for the empty
// ones, and containers, which tell all that a record does.
func (b *registry) Tree(ctx context.Context) iter.Seq2[backends.Record, error] {
	return func(yield func(backends.Record, error) bool) {
		for name, err := range b.Collections(ctx) {
			if !yield(backends.Record{Ref: backends.Ref{Collection: name}, Size: backends.UnknownSize}, err) || err != nil {
				return
			}
		}
		seen := map[backends.Ref]bool{}
		for w, err := range pages[wireContainer](ctx, b, "containers") {
			if err != nil {
				yield(backends.Record{}, err)
				return
			}
			rec := b.recordOf(w)
			if seen[rec.Ref] || unfinished(rec.Tag) {
				continue
			}
			seen[rec.Ref] = true
			if !yield(rec, nil) {
				return
			}
		}
	}
}

// Images lists one public collection in one request. A private one is Denied.
func (b *registry) Images(ctx context.Context, collection string) iter.Seq2[backends.Record, error] {
	return func(yield func(backends.Record, error) bool) {
		c, err := b.collection(ctx, opList, collection)
		if statusOf(err) == http.StatusInternalServerError {
			err = &backends.Error{
				Op: opList, Ref: backends.Ref{Collection: collection}, Kind: backends.Denied, Err: cause(err),
				Hint: "a private collection cannot be listed with a token; its images can still be used by name",
			}
		}
		if err != nil {
			yield(backends.Record{}, err)
			return
		}
		for _, w := range c.Containers {
			ref := refOf(c.Name, w.Name, w.Tag)
			if unfinished(w.Tag) {
				continue
			}
			m := detailPath.FindStringSubmatch(w.Detail)
			if m == nil {
				yield(backends.Record{}, backends.Errorf(opList, ref, backends.Unavailable, "the listing does not tell the container's number"))
				return
			}
			id, err := strconv.ParseInt(m[1], 10, 64)
			if err != nil {
				yield(backends.Record{}, backends.Errorf(opList, ref, backends.Unavailable, "the container's number is no number"))
				return
			}
			if !yield(b.listed(ref, id), nil) {
				return
			}
		}
	}
}

// collection asks for one collection. Unknown is NotFound, though the server
// answers with an empty object; private is kind Other with status 500.
func (b *registry) collection(ctx context.Context, op, name string) (wireCollection, error) {
	ref := backends.Ref{Collection: name}
	var c wireCollection
	if err := backends.CheckCollection(name); err != nil {
		return c, fmt.Errorf("%s: %w", op, err)
	}
	err := b.json(ctx, call{
		Request: transport.Request{Op: op, Ref: ref, URL: b.at(false, append([]string{"api", "collection"}, split(name)...)...), MaxBody: pageBytes},
		auth:    b.tokenHeader(), api: true,
	}, &c)
	if err == nil && c.ID == 0 {
		err = &backends.Error{Op: op, Ref: ref, Kind: backends.NotFound}
	}
	return c, err
}
