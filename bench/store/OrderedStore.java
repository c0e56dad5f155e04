import de.bwaldvogel.mongo.MongoServer;
import de.bwaldvogel.mongo.MongoVersion;
import de.bwaldvogel.mongo.backend.AbstractMongoBackend;
import de.bwaldvogel.mongo.backend.CollectionOptions;
import de.bwaldvogel.mongo.backend.CursorRegistry;
import de.bwaldvogel.mongo.backend.DocumentWithPosition;
import de.bwaldvogel.mongo.backend.Index;
import de.bwaldvogel.mongo.backend.QueryResult;
import de.bwaldvogel.mongo.backend.ValueComparator;
import de.bwaldvogel.mongo.backend.memory.MemoryCollection;
import de.bwaldvogel.mongo.backend.memory.MemoryDatabase;
import de.bwaldvogel.mongo.bson.Document;
import java.net.InetSocketAddress;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.NavigableMap;
import java.util.Set;
import java.util.TreeMap;

/**
 * mongo-java-server in memory, with ordered indexes: OrderedStore HOST PORT.
 *
 * <p>That server reads every document of a collection unless a query names exactly the fields of a unique index, so that a measurement
 * with thousands of tasks measures it. Here the first field of each index is kept in order, and a query reads only the documents that one
 * of its conditions on such a field allows, or reads in the order of such a field and ends at its limit.
 */
public final class OrderedStore {
  private static final int FEW = 2_000;

  public static void main(String[] arguments) throws Exception {
    var backend = new AbstractMongoBackend() {
      @Override
      protected MemoryDatabase openOrCreateDatabase(String name) {
        return new OrderedDatabase(name, getCursorRegistry());
      }
    };
    backend.version(new MongoVersion() {
      @Override
      public List<Integer> getVersionArray() {
        return List.of(5, 0, 0);
      }

      @Override
      public int getWireVersion() {
        return 13;
      }
    });
    MongoServer server = new MongoServer(backend);
    server.bind(new InetSocketAddress(arguments[0], Integer.parseInt(arguments[1])));
    Runtime.getRuntime().addShutdownHook(new Thread(server::shutdown));
    Thread.currentThread().join();
  }

  private static final class OrderedDatabase extends MemoryDatabase {
    OrderedDatabase(String name, CursorRegistry cursors) {
      super(name, cursors);
    }

    @Override
    protected MemoryCollection openOrCreateCollection(String name, CollectionOptions options) {
      return new OrderedCollection(this, name, options, cursorRegistry);
    }
  }

  /** The positions of documents by the values of one field; a list counts with each of its elements, a missing field not at all. */
  private static final class Ordered {
    final NavigableMap<Object, Set<Integer>> positions = new TreeMap<>(ValueComparator.asc());
    boolean hasLists;

    void add(Object value, Integer position) {
      for (Object each : elements(value)) {
        positions.computeIfAbsent(each, any -> new LinkedHashSet<>()).add(position);
      }
    }

    void remove(Object value, Integer position) {
      for (Object each : elements(value)) {
        positions.computeIfPresent(each, (any, all) -> all.remove(position) && all.isEmpty() ? null : all);
      }
    }

    private Collection<?> elements(Object value) {
      hasLists |= value instanceof Collection;
      return value instanceof Collection<?> list ? list : isPlain(value) ? List.of(value) : List.of();
    }

    /** What a condition allows, or null if this index does not help. */
    NavigableMap<Object, Set<Integer>> allowedBy(Object condition) {
      if (isPlain(condition)) {
        return positions.subMap(condition, true, condition, true);
      }
      if (!(condition instanceof Document operators) || operators.isEmpty()) {
        return null;
      }
      NavigableMap<Object, Set<Integer>> allowed = positions;
      for (Map.Entry<String, Object> each : operators.entrySet()) {
        Object value = each.getValue();
        if (each.getKey().equals("$in") && value instanceof Collection<?> list && list.stream().allMatch(Ordered::isPlain)) {
          NavigableMap<Object, Set<Integer>> chosen = new TreeMap<>(ValueComparator.asc());
          for (Object one : list) {
            chosen.putAll(allowed.subMap(one, true, one, true));
          }
          allowed = chosen;
        } else if (!isPlain(value)) {
          return null;
        } else {
          switch (each.getKey()) {
            case "$gt" -> allowed = after(allowed, value, false);
            case "$gte" -> allowed = after(allowed, value, true);
            case "$lt" -> allowed = before(allowed, value, false);
            case "$lte" -> allowed = before(allowed, value, true);
            default -> {
              return null;
            }
          }
        }
      }
      return allowed;
    }

    private static NavigableMap<Object, Set<Integer>> after(NavigableMap<Object, Set<Integer>> map, Object value, boolean inclusive) {
      return map.isEmpty() || map.comparator().compare(map.lastKey(), value) < 0 ? new TreeMap<>(ValueComparator.asc()) : map.tailMap(value, inclusive);
    }

    private static NavigableMap<Object, Set<Integer>> before(NavigableMap<Object, Set<Integer>> map, Object value, boolean inclusive) {
      return map.isEmpty() || map.comparator().compare(map.firstKey(), value) > 0 ? new TreeMap<>(ValueComparator.asc()) : map.headMap(value, inclusive);
    }

    static boolean isPlain(Object value) {
      return value instanceof String || value instanceof Number;
    }
  }

  private static final class OrderedCollection extends MemoryCollection {
    private final Map<String, Ordered> fields = new HashMap<>(Map.of("_id", new Ordered()));

    OrderedCollection(MemoryDatabase database, String name, CollectionOptions options, CursorRegistry cursors) {
      super(database, name, options, cursors);
    }

    @Override
    public synchronized void addIndex(Index<Integer> index) {
      super.addIndex(index);
      String field = index.getKeys().get(0).getKey();
      if (!fields.containsKey(field)) {
        Ordered ordered = new Ordered();
        streamAllDocumentsWithPosition().forEach((DocumentWithPosition<Integer> each) ->
            ordered.add(each.getDocument().get(field), each.getPosition()));
        fields.put(field, ordered);
      }
    }

    @Override
    protected Integer addDocumentInternal(Document document) {
      Integer position = super.addDocumentInternal(document);
      fields.forEach((field, ordered) -> ordered.add(document.get(field), position));
      return position;
    }

    @Override
    protected void removeDocument(Integer position) {
      Document document = getDocument(position);
      fields.forEach((field, ordered) -> ordered.remove(document.get(field), position));
      super.removeDocument(position);
    }

    @Override
    protected void handleUpdate(Integer position, Document before, Document after) {
      fields.forEach((field, ordered) -> {
        ordered.remove(before.get(field), position);
        ordered.add(after.get(field), position);
      });
    }

    @Override
    protected QueryResult matchDocuments(Document query, Document orderBy, int skip, int limit, int batchSize, Document selector) {
      Set<Integer> fewest = null;
      for (Map.Entry<String, Object> each : query.entrySet()) {
        var allowed = allowedBy(each.getKey(), query);
        Set<Integer> found = allowed == null ? null : few(allowed, fewest == null ? FEW : fewest.size());
        fewest = found == null ? fewest : found;
      }
      if (fewest != null) {
        return matchDocuments(query, fewest, orderBy, skip, limit, batchSize, selector);
      }
      String order = orderBy != null && orderBy.size() == 1 ? orderBy.keySet().iterator().next() : "";
      if (!fields.containsKey(order) || fields.get(order).hasLists) {
        return super.matchDocuments(query, orderBy, skip, limit, batchSize, selector);
      }
      var allowed = order.equals("_id") && !query.containsKey("_id") ? fields.get("_id").positions : allowedBy(order, query);
      if (allowed == null) {
        return super.matchDocuments(query, orderBy, skip, limit, batchSize, selector);
      }
      var inOrder = ((Number) orderBy.get(order)).intValue() < 0 ? allowed.descendingMap() : allowed;
      var documents = inOrder.values().stream().flatMap(Collection::stream).map(this::getDocument);
      return matchDocumentsFromStream(query, documents, skip, limit, batchSize, null, selector);
    }

    private NavigableMap<Object, Set<Integer>> allowedBy(String field, Document query) {
      Ordered ordered = fields.get(field);
      return ordered == null ? null : ordered.allowedBy(query.get(field));
    }

    /** Null if there are more. */
    private static Set<Integer> few(NavigableMap<Object, Set<Integer>> allowed, int most) {
      Set<Integer> found = new LinkedHashSet<>();
      for (Set<Integer> each : allowed.values()) {
        found.addAll(each);
        if (found.size() > most) {
          return null;
        }
      }
      return found;
    }
  }
}
